"use strict";
// The threshold slider: reads the table beside it, so that the page says the same without a script.
const slider = document.querySelector("#eps");
if (slider) {
  const rows = [...document.querySelectorAll("#sweep tbody tr")].map((row) => [...row.cells].map((c) => c.textContent));
  const mark = document.querySelector("#sweep-mark");
  const show = () => {
    const [eps, similarity, removed, share] = rows[slider.value];
    document.querySelector("#eps-says").textContent = `eps ${eps} (similarity ≥ ${similarity}): ${removed} removed, ${share}`;
    const x = rows.length > 1 ? (slider.value / (rows.length - 1)) * 100 : 50;
    mark.setAttribute("x1", x);
    mark.setAttribute("x2", x);
  };
  slider.addEventListener("input", show);
  show();
}

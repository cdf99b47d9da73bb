#!/bin/bash
# Cluster init script: puts the RAPIDS plugin on the class path before the JVM starts.
# RAPIDS_JAR is set in the cluster's environment (see databricks.yml); upload the jar there once (see README.md).
set -euo pipefail

jar="${RAPIDS_JAR:?set RAPIDS_JAR to the plugin jar on a Unity Catalog volume}"
pinned="d5224e1c07bc881e93829ea341b33a9a7896d1ced7783262b62d027a1e48b1f9"
target="${RAPIDS_TARGET:-/databricks/jars}"

if [[ ! -r "$jar" ]]; then
  echo "init-rapids: cannot read $jar: upload the jar, and let the cluster's user READ VOLUME" >&2
  exit 1
fi
# A jar that is cut short or exchanged must stop the cluster here, not fail in the middle of a job.
found="$(sha256sum "$jar" | cut -d' ' -f1)"
if [[ "$found" != "$pinned" ]]; then
  echo "init-rapids: $jar has SHA-256 $found, pinned is $pinned" >&2
  exit 1
fi
cp "$jar" "$target/"
echo "init-rapids: $(basename "$jar") verified and copied to $target"

#!/usr/bin/env bash
# As a newcomer goes, from a clean clone to verdicts: build twice, install without the source tree in reach, run the pages of
# docs/walk, the demo and the labelling server, open the reports. Prints the seconds of each step; ends at the first that fails.
#
#     packaging/walk.sh PYTHON [FOLDER]    needs uv, and chromium to open the pages; EXTRAS=all, DEMO=0 leaves the demo out
set -euo pipefail
python=$(command -v "$1") source=$(cd "$(dirname "$0")/.." && pwd) here=${2:-$(mktemp -d)}
mkdir -p "$here" && cd "$here" && here=$PWD
unset PYTHONPATH
step() { local start=$SECONDS; echo "-- $*" | cut -c1-150; "$@" > step.log 2>&1 || { tail -40 step.log; exit 1; }; echo "   $((SECONDS - start)) s"; }

rm -rf clone one two env walk && git clone -q "$source" clone
step uv build --no-config --python "$python" --out-dir one clone
step uv build --no-config --python "$python" --out-dir two clone
cmp one/*.whl two/*.whl && cmp one/*.tar.gz two/*.tar.gz
echo "   both times the same: $(sha256sum one/*.whl | cut -c1-16) $(sha256sum one/*.tar.gz | cut -c1-16)"
wheel=$(echo "$here"/one/*.whl) archive=$(echo "$here"/one/*.tar.gz)
tar -tzf "$archive" > inside.txt && for part in tests/test_packaging.py docs/index.md examples/gallery; do grep -q "/$part" inside.txt; done

uv venv -q --python "$python" env
step uv pip install --python env/bin/python "$wheel[${EXTRAS:-all}]"
env/bin/python - "$here/env" <<'PY'
import sys
import pfungst
assert pfungst.__file__.startswith(sys.argv[1]), pfungst.__file__
print("  ", sys.version.split()[0], pfungst.__file__)
PY

cat > page.py <<'PY'
"""Run the blocks of a page in the folder it is called in: Python as it stands, commands by the installed `pfungst`."""
import re
import subprocess
import sys
import time
from pathlib import Path

for language, text in re.findall(r"^```(\w+)\n(.*?)^```", Path(sys.argv[1]).read_text(encoding="utf-8"), re.M | re.S):
    for code in [text] if language == "python" else text.splitlines():
        start, tool = time.time(), Path(sys.executable).parent
        words = [sys.executable, "-c", code] if language == "python" else [tool / "pfungst", *code.split()[2:]]
        done = subprocess.run(words, capture_output=True, text=True)
        print(f"   {time.time() - start:5.1f} s  {code.splitlines()[0][:110]}")
        if done.returncode:
            sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
        print(*re.findall(r"^(?:sound|unfit|fragile|provenance|clever-hans|too-few|not-established) .*", done.stdout, re.M))
PY
opened() {  # the page stands by itself: a browser without network shows its headline
  grep -q "<h1" "$1/report.html" && ! grep -qE '(src|href)="https?://[^"]*\.(js|css|png|woff2?)' "$1/report.html"
  ! command -v chromium > /dev/null || timeout 120 chromium --headless --no-sandbox --disable-gpu --host-resolver-rules='MAP * ~NOTFOUND' \
    --dump-dom "file://$(cd "$1" && pwd)/report.html" 2> /dev/null | grep -q "</h1>"
  echo "   opened $1/report.html"
}
for page in inspection radiology platform; do
  echo "-- docs/walk/$page.md"
  mkdir -p "walk/$page" && cd "walk/$page"
  start=$SECONDS
  "$here/env/bin/python" "$here/page.py" "$here/clone/docs/walk/$page.md"
  echo "   $((SECONDS - start)) s in all"
  cd "$here" && opened "walk/$page/verdict"
done

echo "-- pfungst label"
env/bin/pfungst label walk/platform/verdict --labeller anna --labeller ben --port 0 > label.log 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
for _ in $(seq 60); do grep -q http label.log && break; sleep 1; done
link=$(grep -oE 'http://[^ ]+' label.log | head -1)
curl -sSf -L -c jar.txt -o page.html "$link" && grep -q "<html" page.html && echo "   answers at ${link%%/enter*}"
kill $server

if [ "${DEMO:-1}" = 1 ]; then
  step env/bin/pfungst demo --out demo
  for part in anomaly similarity classifier; do opened "demo/$part"; done
fi
step uv pip install --python env/bin/python --reinstall --no-deps "$archive"
step env/bin/pfungst doctor
echo "done: Python $(env/bin/python -V | cut -d' ' -f2)"

#!/bin/sh
# Runs a command on each file, one GPU at a time, four in the queue at most:
#   examples/shell/batch.sh ./ocr *.pdf
# A file that fails does not stop the others; the exit code says whether all went well.
set -u
[ $# -ge 2 ] || { echo "usage: $0 COMMAND FILE..." >&2; exit 2; }
command=$1
shift
printf '%s\0' "$@" | xargs -0 -n 1 -P 4 gpulockd run --quiet --wait 2h --task "$(basename "$command")" -- "$command"

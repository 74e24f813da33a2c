#!/usr/bin/env bash
# Brings the last stable configuration of the GPU locks back into force, without a question and without a restart.
#
#   scripts/rollback_gpu_lock_config.sh [REVISION] [REASON]
#
# It asks the daemon at its unix socket (GPULOCKD_SOCKET, or the usual folders), else at GPULOCKD_URL
# (http://localhost:8788) with the token: GPULOCKD_TOKEN, or what `gpulockd token` prints.
# It prints what `gpulockd config rollback` prints; overall_status is the last line. Exit code: 0 the system is well again, 1 it is not, 2 wrong
# usage, 3 no daemon answers, 4 not permitted. It needs curl, or the command gpulockd.
set -u

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
path=/api/v1/config/rollback
url=${GPULOCKD_URL:-http://localhost:8788}

say() { printf 'rollback: %s\n' "$*" >&2; }

revision=null reason=
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
if [[ ${1:-} =~ ^[0-9]{1,9}$ ]]; then
    revision=$((10#$1))
    shift
elif [[ ${1:-} == -* ]]; then
    say "unknown option '$1'; usage: ${0##*/} [REVISION] [REASON]"
    exit 2
fi
reason=${*:-rollback script}
reason=${reason//[^[:alnum:][:blank:].,:;_()\/#+-]/}
body="{\"to\": $revision, \"reason\": \"$reason\", \"origin\": \"cli\"}"

command_of_ours() {
    if [[ -n ${GPULOCKD:-} ]]; then
        printf '%s\n' "$GPULOCKD"
    else
        command -v gpulockd || { [[ -x $here/../.venv/bin/gpulockd ]] && printf '%s\n' "$here/../.venv/bin/gpulockd"; }
    fi
}

sockets() {
    if [[ -n ${GPULOCKD_SOCKET:-} ]]; then
        [[ -d $GPULOCKD_SOCKET ]] && printf '%s\n' "$GPULOCKD_SOCKET/api.sock" || printf '%s\n' "$GPULOCKD_SOCKET"
        return
    fi
    [[ -n ${XDG_RUNTIME_DIR:-} ]] && printf '%s\n' "$XDG_RUNTIME_DIR/gpulockd/api.sock"
    printf '%s\n' /run/gpulockd/api.sock
    # Anyone can make a folder in /tmp, so there only our own counts.
    [[ -O /tmp/gpulockd-$UID ]] && printf '%s\n' "/tmp/gpulockd-$UID/api.sock"
}

# $1: a field whose value is text   $2: JSON on one line; the field is none of an inner object's, or the last of its name
text_of() {
    local found
    found=$(sed -n "s/.*\"$1\" *: *\"\(\([^\"\\\\]\|\\\\.\)*\)\".*/\1/p" <<<"$2")
    printf '%b' "${found:-$2}"
}

# $1: body and status of an answer, on lines of their own
finish() {
    local status=${1##*$'\n'} answer=${1%$'\n'*}
    if [[ $status != 200 ]]; then
        say "$(text_of detail "$answer")"
        case $status in
            401 | 403) say "not permitted; ask as root or as the daemon's user, or set GPULOCKD_TOKEN to its token" ;;
            *) say "$(text_of hint "$answer")" ;;
        esac
        case $status in
            401 | 403) exit 4 ;;
            400 | 422) exit 2 ;;
            *) exit 1 ;;
        esac
    fi
    printf '%s\n' "$(text_of text "$answer")"
    [[ $answer =~ \"verified\"\ *:\ *true ]] || exit 1
    exit 0
}

if ! command -v curl >/dev/null; then
    ours=$(command_of_ours) || { say "neither curl nor gpulockd is installed"; exit 3; }
    [[ $revision == null ]] && exec "$ours" config rollback --reason "$reason"
    exec "$ours" config rollback "$revision" --reason "$reason"
fi

asks=(curl --silent --show-error --noproxy '*' --max-time 330 -X POST -H 'Content-Type: application/json'
    -d "$body" --write-out '\n%{http_code}')
while read -r socket; do
    [[ -S $socket ]] || continue
    if answer=$("${asks[@]}" --unix-socket "$socket" "http://localhost$path"); then
        finish "$answer"
    fi
done < <(sockets)

token=${GPULOCKD_TOKEN:-}
if [[ -z $token ]] && ours=$(command_of_ours); then
    token=$("$ours" token 2>/dev/null) || token=
fi
# The header goes through a pipe, for every user can read the arguments of a process.
if answer=$("${asks[@]}" --header @<(printf 'Authorization: Bearer %s' "$token") "$url$path"); then
    finish "$answer"
fi
say "no daemon answers at a socket or at $url; start it with 'gpulockd serve' or 'systemctl start gpulockd'"
exit 3

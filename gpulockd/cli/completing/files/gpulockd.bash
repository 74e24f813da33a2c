# bash completion of gpulockd: source it, or put it into /usr/share/bash-completion/completions/gpulockd
# Made of the commands' own parsers by 'python -m gpulockd.cli.completing.write'; not written by hand.
_gpulockd() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words='' i at=1 command=''
    COMPREPLY=()
    for (( i = 1; i < COMP_CWORD; i++ )); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then
            # What follows is a command of the user's own.
            if (( i + 1 == COMP_CWORD )); then
                COMPREPLY=( $(compgen -c -- "$cur") )
            else
                compopt -o default 2>/dev/null
            fi
            return
        fi
    done
    [[ ${COMP_WORDS[1]} == --debug ]] && at=2
    if (( COMP_CWORD > at )); then
        command=${COMP_WORDS[at]}
        case "$command ${COMP_WORDS[at+1]}" in
            'alerts ack') command='alerts ack' ;;
            'alerts silence') command='alerts silence' ;;
            'alerts test') command='alerts test' ;;
            'alerts forget') command='alerts forget' ;;
            'alerts down') command='alerts down' ;;
            'config show') command='config show' ;;
            'config get') command='config get' ;;
            'config set') command='config set' ;;
            'config unset') command='config unset' ;;
            'config apply') command='config apply' ;;
            'config edit') command='config edit' ;;
            'config check') command='config check' ;;
            'config diff') command='config diff' ;;
            'config history') command='config history' ;;
            'config audit') command='config audit' ;;
            'config rollback') command='config rollback' ;;
            'config impact') command='config impact' ;;
            'config rollout') command='config rollout' ;;
            'config approve') command='config approve' ;;
            'config pause') command='config pause' ;;
            'config resume') command='config resume' ;;
            'config abort') command='config abort' ;;
        esac
        [[ $command == *' '* ]] && (( COMP_CWORD == at + 1 )) && command=${COMP_WORDS[at]}
    fi
    case "$command:$prev" in
        'serve:--config') compopt -o default 2>/dev/null; return ;;
        'serve:--simulate') :; return ;;
        'serve:--listen') :; return ;;
        'serve:--socket') compopt -o default 2>/dev/null; return ;;
        'serve:--redis') :; return ;;
        'serve:--pool') :; return ;;
        'serve:--state-dir') compopt -o default 2>/dev/null; return ;;
        'run:-n') :; return ;;
        'run:--gpu') :; return ;;
        'run:--memory') :; return ;;
        'run:--timeout') :; return ;;
        'run:--task') :; return ;;
        'run:-p'|'run:--priority') :; return ;;
        'run:--wait') :; return ;;
        'run:-E') :; return ;;
        'run:--report') compopt -o default 2>/dev/null; return ;;
        'run:--hook') :; return ;;
        'run:--soft-signal') :; return ;;
        'run:-c') :; return ;;
        'acquire:-n') :; return ;;
        'acquire:--gpu') :; return ;;
        'acquire:--memory') :; return ;;
        'acquire:--timeout') :; return ;;
        'acquire:--task') :; return ;;
        'acquire:-p'|'acquire:--priority') :; return ;;
        'acquire:--wait') :; return ;;
        'acquire:--pid') :; return ;;
        'acquire:--ttl') :; return ;;
        'renew:--ttl') :; return ;;
        'adopt:-n') :; return ;;
        'adopt:--gpu') :; return ;;
        'adopt:--memory') :; return ;;
        'adopt:--timeout') :; return ;;
        'adopt:--task') :; return ;;
        'progress:--lease') :; return ;;
        'top:--sort') COMPREPLY=( $(compgen -W 'gpu age memory state' -- "$cur") ); return ;;
        'events:--since') :; return ;;
        'history:--task') :; return ;;
        'history:--gpu') :; return ;;
        'history:--since') :; return ;;
        'history:--limit') :; return ;;
        'alerts:--history') :; return ;;
        'alerts ack:--note') :; return ;;
        'alerts silence:--for') :; return ;;
        'alerts silence:--note') :; return ;;
        'alerts down:--config') compopt -o default 2>/dev/null; return ;;
        'alerts down:--unit') :; return ;;
        'config set:--pool') :; return ;;
        'config set:--reason') :; return ;;
        'config set:--expect') :; return ;;
        'config unset:--pool') :; return ;;
        'config unset:--reason') :; return ;;
        'config unset:--expect') :; return ;;
        'config apply:--profile') :; return ;;
        'config apply:--canary') :; return ;;
        'config apply:--then') :; return ;;
        'config apply:--hold') :; return ;;
        'config apply:--pool') :; return ;;
        'config apply:--reason') :; return ;;
        'config apply:--expect') :; return ;;
        'config edit:--pool') :; return ;;
        'config edit:--reason') :; return ;;
        'config edit:--expect') :; return ;;
        'config history:-n'|'config history:--count') :; return ;;
        'config history:--before') :; return ;;
        'config audit:-n'|'config audit:--count') :; return ;;
        'config rollback:--reason') :; return ;;
        'config rollback:--restart') :; return ;;
        'config approve:--reason') :; return ;;
        'config pause:--reason') :; return ;;
        'config resume:--reason') :; return ;;
        'config abort:--reason') :; return ;;
        'bench:--baseline') :; return ;;
        'bench:--candidate') :; return ;;
        'bench:--rounds') :; return ;;
        'bench:--gpus') :; return ;;
        'bench:--scale') :; return ;;
        'bench:--seed') :; return ;;
        'doctor:--pool') :; return ;;
        'token:--state-dir') compopt -o default 2>/dev/null; return ;;
        'drill:--slack') :; return ;;
        'backup:--folder') compopt -o default 2>/dev/null; return ;;
        'backup:--keep') :; return ;;
        'backup:--config') compopt -o default 2>/dev/null; return ;;
        'backup:--pool') :; return ;;
        'backup:--state-dir') compopt -o default 2>/dev/null; return ;;
        'restore:--only') COMPREPLY=( $(compgen -W 'config history' -- "$cur") ); return ;;
        'restore:--reason') :; return ;;
        'restore:--pool') :; return ;;
        'restore:--config-to') compopt -o default 2>/dev/null; return ;;
        'install-service:--redis') :; return ;;
        'install-service:--prefix') compopt -o default 2>/dev/null; return ;;
        'install-service:--program') compopt -o default 2>/dev/null; return ;;
    esac
    case $command in
        '') words='serve run acquire renew adopt progress status queue top release gpu events history alerts config bench doctor token drill backup restore install-service completion version --help --version --debug' ;;
        'serve') words='-h --help --debug --config --simulate --listen --socket --redis --pool --state-dir --stop-store'; ;;
        'run') words='-h --help --debug -n --gpu --memory --timeout --task -p --priority --wait --no-wait -E --report --hook --soft-signal -q --quiet -c'; ;;
        'acquire') words='-h --help --debug -n --gpu --memory --timeout --task -p --priority --wait --no-wait --pid --ttl --export -q --quiet --json'; ;;
        'renew') words='-h --help --debug --ttl -q --quiet --json'; ;;
        'adopt') words='-h --help --debug -n --gpu --memory --timeout --task -q --quiet --json'; ;;
        'progress') words='-h --help --debug --lease --json'; ;;
        'status') words='-h --help --debug --json'; ;;
        'queue') words='-h --help --debug --json'; ;;
        'top') words='-h --help --debug --once --sort --json'; ;;
        'release') words='-h --help --debug -y --yes --json'; ;;
        'gpu') words='-h --help --debug --json'; [[ ' drain resume ' == *" $prev "* ]] || words+=' drain resume '; ;;
        'events') words='-h --help --debug -f --follow --since --json'; ;;
        'history') words='-h --help --debug --task --gpu --since --limit --json'; ;;
        'alerts') words='ack silence test forget down -h --help --debug --json --all --history'; ;;
        'alerts ack') words='-h --help --note --json'; ;;
        'alerts silence') words='-h --help --for --note --json'; ;;
        'alerts test') words='-h --help --json'; ;;
        'alerts forget') words='-h --help --json'; ;;
        'alerts down') words='-h --help --config --unit --json'; ;;
        'config') words='show get set unset apply edit check diff history audit rollback impact rollout approve pause resume abort'; ;;
        'config show') words='-h --help --debug --origin --live --json'; ;;
        'config get') words='-h --help --debug --json'; ;;
        'config set') words='-h --help --debug --pool --reason --expect --dry-run --unvalidated --json'; ;;
        'config unset') words='-h --help --debug --pool --reason --expect --dry-run --unvalidated --json'; ;;
        'config apply') words='-h --help --debug --profile --replace --staged --canary --then --hold --pool --reason --expect --dry-run --unvalidated --json'; compopt -o default 2>/dev/null; ;;
        'config edit') words='-h --help --debug --pool --reason --expect --dry-run --unvalidated --json'; ;;
        'config check') words='-h --help --debug --environment --json'; compopt -o default 2>/dev/null; ;;
        'config diff') words='-h --help --debug --json'; ;;
        'config history') words='-h --help --debug -n --count --before --json'; ;;
        'config audit') words='-h --help --debug -n --count --json'; ;;
        'config rollback') words='-h --help --debug --reason --all --restart --json'; ;;
        'config impact') words='-h --help --debug --json'; ;;
        'config rollout') words='-h --help --debug --json'; ;;
        'config approve') words='-h --help --debug --reason --json'; ;;
        'config pause') words='-h --help --debug --reason --json'; ;;
        'config resume') words='-h --help --debug --reason --json'; ;;
        'config abort') words='-h --help --debug --reason --json'; ;;
        'bench') words='-h --help --debug --baseline --candidate --polling --quick --rounds --gpus --scale --seed --no-record --json'; ;;
        'doctor') words='-h --help --debug --redis-acl --pool --json'; ;;
        'token') words='-h --help --debug --state-dir'; ;;
        'drill') words='-h --help --debug --quick --slack --keep --plant --json'; ;;
        'backup') words='-h --help --debug --folder --keep --list --with-secrets --config --pool --state-dir --json'; compopt -o default 2>/dev/null; ;;
        'restore') words='-h --help --debug --dry-run --only --reason --pool --config-to --json'; compopt -o default 2>/dev/null; ;;
        'install-service') words='-h --help --debug --user --redis --prefix --program --uninstall --dry-run'; ;;
        'completion') words='-h --help --debug'; [[ ' bash zsh fish ' == *" $prev "* ]] || words+=' bash zsh fish '; ;;
        'version') words='-h --help --debug --json'; ;;
    esac
    COMPREPLY=( $(compgen -W "$words" -- "$cur") )
}
complete -F _gpulockd gpulockd

# Made by `make completions` from the command line itself.
_vsockfwd() {
  local word=${COMP_WORDS[COMP_CWORD]} options=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W 'add bootstrap cp demo dgram doctor forward fs guests ping plugins relay reload remove serve ssh-config status top up --help --version' -- "$word"))
    return
  fi
  case ${COMP_WORDS[1]} in
    add) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    bootstrap) options='--help --json --log-format --program --pyz --quiet --verbose -q -v' ;;
    cp) options='--acls --archive --backup --bwlimit --checksum --chmod --chown --delete --delta --dereference --digest --dry-run --exclude --files-from --from0 --fsync --group --hard-links --help --include --inplace --json --log-format --mkpath --no-clobber --no-dereference --no-target-directory --numeric-ids --owner --perms --progress --quiet --recursive --resume --stats --suffix --target-directory --times --update --verbose --xattrs -0 -A -H -L -P -R -T -X -a -b -c -g -n -o -p -q -r -t -u -v' ;;
    demo) options='--help --json --log-format --quiet --verbose -q -v' ;;
    dgram) options='--exit-on-failure --flows --help --idle --json --log-format --quiet --verbose -L -R -p -q -v' ;;
    doctor) options='--help --json --log-format --quiet --verbose -p -q -v' ;;
    forward) options='--drain --exit-on-failure --half-open-timeout --help --idle-timeout --json --log-format --max-connections --quiet --verbose --when-down --workers -D -L -R -W -f -p -q -v' ;;
    fs) options='--force --help --json --log-format --long --parents --quiet --recursive --verbose -R -f -l -p -q -r -v' ;;
    guests) options='--help --json --log-format --names --quiet --verbose -q -v' ;;
    ping) options='--count --help --interval --json --log-format --quiet --verbose -c -i -p -q -v' ;;
    plugins) options='--help --json --log-format --quiet --verbose -q -v' ;;
    relay) options='' ;;
    reload) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    remove) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    serve) options='--allow-cid --allow-guest --allow-uid --connect --help --json --listen --log-format --metrics --quiet --read-only --root --verbose -l -q -v' ;;
    ssh-config) options='--agent --help --json --jump --log-format --port --quiet --user --verbose -l -p -q -v' ;;
    status) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    top) options='--control --help --interval --json --log-format --quiet --verbose -d -n -q -v' ;;
    up) options='--check --config --control --drain --help --json --log-format --metrics --quiet --verbose -c -q -v' ;;
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W 'vsock: tcp: unix: abstract: hybrid: fd: udp: unix-dgram: vsock-seqpacket: unix-seqpacket:' -- "$word") $(compgen -f -- "$word")) ;;
  esac
}
complete -o nospace -F _vsockfwd vsockfwd

# Made by `make completions` from the command line itself.
_vsockfwd() {
  local word=${COMP_WORDS[COMP_CWORD]} options=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W 'add cp demo dgram forward fs keygen perf ping plugins policy relay reload remove serve status top up --help --version' -- "$word"))
    return
  fi
  case ${COMP_WORDS[1]} in
    add) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    cp) options='--acls --archive --auth-key --backup --bwlimit --checksum --chmod --chown --delete --delta --dereference --digest --dry-run --exclude --files-from --from0 --fsync --group --hard-links --help --include --inplace --json --log-format --mkpath --no-clobber --no-dereference --no-target-directory --numeric-ids --owner --perms --progress --quiet --recursive --resume --stats --suffix --target-directory --times --update --verbose --xattrs -0 -A -H -L -P -R -T -X -a -b -c -g -n -o -p -q -r -t -u -v' ;;
    demo) options='--help --json --log-format --quiet --verbose -q -v' ;;
    dgram) options='--auth-key --exit-on-failure --flows --help --idle --json --log-format --quiet --verbose -L -R -p -q -v' ;;
    forward) options='--auth-key --drain --exit-on-failure --half-open-timeout --help --idle-timeout --json --log-format --max-connections --quiet --verbose --when-down --workers -D -L -R -W -f -p -q -v' ;;
    fs) options='--auth-key --force --help --json --log-format --long --parents --quiet --recursive --verbose -R -f -l -p -q -r -v' ;;
    keygen) options='--help --json --log-format --name --quiet --verbose -q -v' ;;
    perf) options='--both --bytes --connections --discard --down --echo --help --json --latency --log-format --no-check --quiet --raw --seconds --size --source --streams --up --verbose -P -p -q -t -v' ;;
    ping) options='--auth-key --count --help --interval --json --log-format --quiet --verbose -c -i -p -q -v' ;;
    plugins) options='--help --json --log-format --quiet --verbose -q -v' ;;
    policy) options='--allow-cid --allow-connect --allow-guest --allow-listen --allow-mode --allow-uid --auth-key --auth-keys --config --help --json --log-format --max-connections-per-peer --max-rate --quiet --read-only --root --verbose -c -q -v' ;;
    relay) options='' ;;
    reload) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    remove) options='--control --help --json --log-format --quiet --verbose -q -v' ;;
    serve) options='--allow-cid --allow-connect --allow-guest --allow-listen --allow-mode --allow-uid --auth-key --auth-keys --config --confine --connect --help --json --listen --log-format --max-connections --max-connections-per-peer --max-rate --metrics --no-measure --quiet --read-only --root --user --verbose -c -l -q -v' ;;
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

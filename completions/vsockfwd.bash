# Made by `make completions` from the command line itself.
_vsockfwd() {
  local word=${COMP_WORDS[COMP_CWORD]} options= targets=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W 'add bootstrap cp demo dgram doctor forward fs guests keygen perf ping plugins policy relay reload remove serve ssh-config status top up --help --version' -- "$word"))
    return
  fi
  case ${COMP_WORDS[1]} in
    add) options='--control --help --json --log-format --quiet --verbose -h -q -v' ;;
    bootstrap) options='--help --json --log-format --program --pyz --quiet --verbose -h -q -v' ;;
    cp) options='--acls --archive --auth-key --backup --bwlimit --checksum --chmod --chown --delete --delta --dereference --digest --dry-run --exclude --files-from --from0 --fsync --group --hard-links --help --include --inplace --json --log-format --mkpath --no-clobber --no-dereference --no-perms --no-target-directory --no-times --numeric-ids --owner --perms --progress --quiet --recursive --resume --stats --suffix --target-directory --times --update --verbose --xattrs -0 -A -H -L -P -R -T -X -a -b -c -g -h -n -o -p -q -r -t -u -v' targets=yes ;;
    demo) options='--help --json --log-format --quiet --verbose -h -q -v' ;;
    dgram) options='--auth-key --exit-on-failure --flows --help --idle --json --log-format --quiet --verbose -L -R -h -p -q -v' targets=yes ;;
    doctor) options='--auth-key --help --json --log-format --quiet --verbose -h -p -q -v' targets=yes ;;
    forward) options='--auth-key --drain --exit-on-failure --half-open-timeout --help --idle-timeout --json --log-format --max-connections --quiet --verbose --when-down --workers -D -L -R -W -f -h -p -q -v' targets=yes ;;
    fs) options='--auth-key --force --help --json --log-format --long --parents --quiet --recursive --verbose -R -f -h -l -p -q -r -v' targets=yes ;;
    guests) options='--help --json --log-format --names --quiet --verbose -h -q -v' ;;
    keygen) options='--help --json --log-format --name --quiet --verbose -h -q -v' ;;
    perf) options='--auth-key --both --bytes --connections --discard --down --echo --help --json --latency --log-format --no-check --quiet --raw --seconds --size --source --streams --up --verbose -P -h -p -q -t -v' targets=yes ;;
    ping) options='--auth-key --count --help --interval --json --log-format --quiet --verbose -c -h -i -p -q -v' targets=yes ;;
    plugins) options='--help --json --log-format --quiet --verbose -h -q -v' ;;
    policy) options='--allow-cid --allow-connect --allow-guest --allow-listen --allow-mode --allow-uid --auth-key --auth-keys --config --help --json --log-format --max-bandwidth --max-connections-per-peer --max-rate --quiet --read-only --root --verbose -c -h -q -v' ;;
    relay) options='' targets=yes ;;
    reload) options='--control --help --json --log-format --quiet --verbose -h -q -v' ;;
    remove) options='--control --help --json --log-format --quiet --verbose -h -q -v' ;;
    serve) options='--allow-cid --allow-connect --allow-guest --allow-listen --allow-mode --allow-uid --auth-key --auth-keys --config --confine --connect --help --json --listen --log-format --max-bandwidth --max-connections --max-connections-per-peer --max-rate --metrics --no-measure --quiet --read-only --root --user --verbose -c -h -l -q -v' ;;
    ssh-config) options='--agent --auth-key --help --json --jump --log-format --port --quiet --user --verbose -h -l -p -q -v' targets=yes ;;
    status) options='--control --help --json --log-format --quiet --verbose -h -q -v' ;;
    top) options='--control --help --interval --json --log-format --quiet --verbose -d -h -n -q -v' ;;
    up) options='--check --config --control --drain --help --json --log-format --metrics --quiet --verbose -c -h -q -v' ;;
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *)
      if [ -n "$targets" ]; then
        COMPREPLY=($(compgen -W "vsock: tcp: unix: abstract: hybrid: fd: udp: unix-dgram: vsock-seqpacket: unix-seqpacket: $(vsockfwd guests --names 2>/dev/null)" -- "$word"))
      fi
      COMPREPLY+=($(compgen -f -- "$word"))
      ;;
  esac
}
complete -o nospace -F _vsockfwd vsockfwd

# Made by `make completions` from the command line itself.
_vsockfwd() {
  local word=${COMP_WORDS[COMP_CWORD]} options=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W 'cp demo dgram forward ping plugins relay serve --help --version' -- "$word"))
    return
  fi
  case ${COMP_WORDS[1]} in
    cp) options='--help --json --quiet --recursive --verbose -p -q -r -v' ;;
    demo) options='--help --json --quiet --verbose -q -v' ;;
    dgram) options='--exit-on-failure --flows --help --idle --json --quiet --verbose -L -R -p -q -v' ;;
    forward) options='--exit-on-failure --help --json --quiet --verbose -L -p -q -v' ;;
    ping) options='--count --help --interval --json --quiet --verbose -c -i -p -q -v' ;;
    plugins) options='--help --json --quiet --verbose -q -v' ;;
    relay) options='' ;;
    serve) options='--allow-cid --allow-guest --allow-uid --help --json --listen --quiet --verbose -l -q -v' ;;
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W 'vsock: tcp: unix: abstract: hybrid: fd: udp: unix-dgram:' -- "$word") $(compgen -f -- "$word")) ;;
  esac
}
complete -o nospace -F _vsockfwd vsockfwd

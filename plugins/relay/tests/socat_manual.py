"""The names in socat's manual, of version 1.8.1.1 (doc/socat.yo): its flags, address types, options and variables."""
# ruff: noqa: SIM905

FLAGS = """
    --experimental --statistics -0 -4 -6 -? -D -L -R -S -T -U -V -W -b -d -d0 -g -h -hh -hhh -lf -lh -lm -lp -ls
    -lu -ly -r -s -t -u -v -x
""".split()

TYPES = """
    ABSTRACT-CLIENT ABSTRACT-CONNECT ABSTRACT-LISTEN ABSTRACT-RECV ABSTRACT-RECVFROM ABSTRACT-SENDTO ACCEPT-FD
    CREATE DCCP DCCP-CONNECT DCCP-L DCCP-LISTEN DCCP4 DCCP4-CONNECT DCCP4-L DCCP4-LISTEN DCCP6 DCCP6-CONNECT
    DCCP6-L DCCP6-LISTEN EXEC FD GOPEN INTERFACE IP-DATAGRAM IP-RECV IP-RECVFROM IP-SENDTO IP4-DATAGRAM IP4-RECV
    IP4-RECVFROM IP4-SENDTO IP6-DATAGRAM IP6-RECV IP6-RECVFROM IP6-SENDTO OPEN OPENSSL OPENSSL-DTLS-CLIENT
    OPENSSL-DTLS-SERVER OPENSSL-LISTEN PIPE POSIXMQ POSIXMQ-BIDIRECTIONAL POSIXMQ-READ POSIXMQ-RECEIVE
    POSIXMQ-RECV POSIXMQ-SEND POSIXMQ-WRITE PROXY PTY READLINE SCTP-CONNECT SCTP-LISTEN SCTP4-CONNECT
    SCTP4-LISTEN SCTP6-CONNECT SCTP6-LISTEN SHELL SOCKET-CONNECT SOCKET-DATAGRAM SOCKET-LISTEN SOCKET-RECV
    SOCKET-RECVFROM SOCKET-SENDTO SOCKETPAIR SOCKS4 SOCKS4A SOCKS5-CONNECT SOCKS5-LISTEN STALL STDERR STDIN
    STDIO STDOUT SYSTEM TCP TCP-LISTEN TCP4 TCP4-LISTEN TCP6 TCP6-LISTEN TEXT TUN UDP UDP-DATAGRAM UDP-LISTEN
    UDP-RECV UDP-RECVFROM UDP-SENDTO UDP4 UDP4-DATAGRAM UDP4-LISTEN UDP4-RECV UDP4-RECVFROM UDP4-SENDTO UDP6
    UDP6-DATAGRAM UDP6-LISTEN UDP6-RECV UDP6-RECVFROM UDP6-SENDTO UDPLITE-CONNECT UDPLITE-DATAGRAM
    UDPLITE-LISTEN UDPLITE-RECV UDPLITE-RECVFROM UDPLITE-SENDTO UDPLITE4-CONNECT UDPLITE4-DATAGRAM
    UDPLITE4-LISTEN UDPLITE4-RECV UDPLITE4-RECVFROM UDPLITE4-SENDTO UDPLITE6-CONNECT UDPLITE6-DATAGRAM
    UDPLITE6-LISTEN UDPLITE6-RECV UDPLITE6-RECVFROM UDPLITE6-SENDTO UNIX-CLIENT UNIX-CONNECT UNIX-LISTEN
    UNIX-RECV UNIX-RECVFROM UNIX-SENDTO VSOCK-CONNECT VSOCK-LISTEN
""".split()

OPTIONS = """
    abort-threshold accept-timeout addrconfig ai-addrconfig ai-all ai-passive ai-v4mapped allow-table append b0
    b19200 backlog binary bind bind-tempname brkint broadcast bs0 bs1 bsdly cafile capath ccid cd cert cfmakeraw
    chdir children-shutup chroot chroot-early cipher clocal cloexec commonname compr compress
    conn-abort-threshold connect-timeout cool-write cork cr cr0 cr1 cr2 cr3 crdly cread creat crnl crtscts cs5
    cs6 cs7 cs8 csize cstopb ctty dccp-set-ccid debug defer-accept deny-table dhparams dirsync discard dontroute
    dsusp dsync echo echoctl echoe echok echoke echonl echoprt egd end-close eof eol eol2 erase escape excl
    f-setpipe-sz fdin fdout ff0 ff1 ffdly fips flock-ex flock-ex-nb flock-sh flock-sh-nb flusho forever fork
    fs-append fs-noatime fs-sync ftruncate group group-early group-late history http-version hupcl i-pop-all
    i-push icanon icrnl iexten iff-allmulti iff-automedia iff-broadcast iff-debug iff-dynamic iff-loopback
    iff-master iff-multicast iff-no-pi iff-noarp iff-notrailers iff-pointopoint iff-portsel iff-promisc
    iff-running iff-slave iff-up ignbrk igncr ignorecr ignoreeof ignpar imaxbel immutable inlcr inpck
    interface-mtu interval intr ioctl-bin ioctl-int ioctl-intp ioctl-string ioctl-void ip-add-membership
    ip-add-source-membership ip-mtu-discover ip-multicast-if ip-multicast-loop ip-multicast-ttl ip-options
    ip-pktinfo ip-recvdstaddr ip-recverr ip-recvif ip-recvopts ip-recvtos ip-recvttl ip-transparent
    ipv6-join-group ipv6-join-source-group ipv6-mtu-discover ipv6-multicast-loop ipv6-recvdstopts
    ipv6-recvhoplimit ipv6-recvhopopts ipv6-recvpktinfo ipv6-recvrthdr ipv6-recvtclass ipv6-tclass
    ipv6-unicast-hops ipv6only isig ispeed istrip iuclc ixany ixoff ixon journal-data keepalive keepcnt keepidle
    keepinit keepintvl key kill largefile linger linger2 link lnext lock lockfile login lowport max-children
    md5sig method min mode mss mss-late netns nl0 nl1 nldly no-sni noatime noctty nodelay nodump noecho noflsh
    nofollow nofork noinherit nonblock noopt noprompt nopush notail nshare null-eof ocrnl ofdel ofill olcuc
    onlcr onlret onocr oobinline openpty openssl-max-proto-version openssl-maxfraglen openssl-maxsendfrag
    openssl-min-proto-version opost ospeed parenb parmrk parodd passive path paws pendin perm-early perm-late
    pipes posixmq-flush posixmq-maxmsg posixmq-msgsize posixmq-priority priority prompt protocol protocol-family
    proxy-authorization proxy-authorization-file proxyport pseudo ptmx pty pty-interval quit range raw rawer
    rcvbuf rcvbuf-late rcvlowat rdonly readbytes reprint res-aaonly res-debug res-defnames res-dnsrch res-igntc
    res-nsaddr res-primary res-recurse res-retrans res-retry res-stayopen res-usevc resolve retrieve-vlan retry
    reuseaddr reuseport rfc1323 rshare rsync sack-disable sackena sane sctp-maxseg sctp-nodelay secrm seek
    seek-cur seek-end setgid setgid-early setlk setlk-rd setlkw setlkw-rd setpgid setpipe setsid setsockopt
    setsockopt-connected setsockopt-int setsockopt-listen setsockopt-socket setsockopt-string setuid
    setuid-early shell shut-close shut-down shut-none shut-null sighup sigint signature-enable sigquit
    sitout-eio sndbuf sndbuf-late sndlowat snihost so-bindtodevice so-rcvtimeo so-sndtimeo so-timestamp
    sockspass socksport socksuser socktype sourceport start stderr stdurg stop su su-d susp swtc sync syncnt
    tab0 tab1 tab2 tab3 tabdly tcpwrap tcpwrap-etc termios-setflags text time tiocswinsz tos tostop trunc
    tsoptena ttl tun-device tun-name tun-type udp-ignore-peerport udplite-recv-cscov udplite-send-cscov umask
    unix-tightsocklen unlink unlink-close unlink-early unlink-late unrm user user-early user-late v4mapped
    verify vt0 vt1 vtdly wait-slave waitlock werase wronly xcase xtabs
""".split()

VARIABLES = """
    HOME HOSTNAME LOGNAME PATH SHELL SOCAT_DEFAULT_LISTEN_IP SOCAT_FORK_WAIT SOCAT_IPV6_DSTADDR
    SOCAT_IPV6_HOPLIMIT SOCAT_IPV6_TCLASS SOCAT_IP_DSTADDR SOCAT_IP_IF SOCAT_IP_LOCADDR SOCAT_IP_OPTIONS
    SOCAT_IP_TOS SOCAT_IP_TTL SOCAT_MAIN_WAIT SOCAT_OPENSSL_X509V3_DNS SOCAT_OPENSSL_X509_*
    SOCAT_OPENSSL_X509_COMMONNAME SOCAT_OPENSSL_X509_ISSUER SOCAT_OPENSSL_X509_SUBJECT SOCAT_PEERADDR
    SOCAT_PEERPORT SOCAT_PID SOCAT_PPID SOCAT_PREFERRED_RESOLVE_IP SOCAT_SOCKADDR SOCAT_SOCKPORT SOCAT_TIMESTAMP
    SOCAT_TRANSFER_WAIT SOCAT_VERSION USER
""".split()

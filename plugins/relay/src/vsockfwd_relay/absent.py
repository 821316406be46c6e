"""What socat has and this relay has not, by name and with the reason: it is refused by that name, never ignored.

docs/socat.md shows the same; the names are those of the manual of socat 1.8.
"""

from __future__ import annotations

from collections.abc import Mapping

_LATER_TERMIOS = "of a terminal's settings only raw, rawer and echo are set; stty does the rest"
_OTHER_SYSTEMS = "Linux has no such thing"
_ANCILLARY = "nobody here would be told what the kernel tells beside a datagram"
_RESOLVER = "names are looked up as the machine is set up to"
_LOCKS = "lockfile and waitlock are the locks here"
_PRIVILEGES = "start it as the user it is to be, or by a service manager"
_PROXIES = "there is no SOCKS or HTTP client"
_INTERFACES = "there are no network interfaces"
_QUEUES = "there are no POSIX message queues"
_ATTRIBUTES = "chattr(1) sets a file's attributes"
_RANDOM = "the kernel's random numbers need no help"

_OPTIONS = (
    (_LOCKS, "setlk setlkw setlk-rd setlkw-rd flock-ex flock-ex-nb flock-sh flock-sh-nb lock"),
    (
        "user, group and mode are set as soon as there is something to set them on",
        "user-late group-late perm-late user-early group-early perm-early",
    ),
    (_OTHER_SYSTEMS, "binary text noinherit nshare rshare rsync dsusp i-pop-all i-push ip-recvdstaddr ip-recvif"),
    (
        _OTHER_SYSTEMS,
        "rfc1323 stdurg md5sig noopt nopush sack-disable signature-enable abort-threshold conn-abort-threshold "
        "keepinit paws sackena tsoptena",
    ),
    ("Linux uses what is set before it connects: mss", "mss-late"),
    ("what we open is closed in every program that we start", "cloexec"),
    ("a connection that breaks ends itself alone, and is told as what it is", "cool-write children-shutup"),
    ("a connection is shared with nobody: to close it ends it", "end-close"),
    ("setsockopt and raw do what most need of it", "ioctl-void ioctl-int ioctl-intp ioctl-bin ioctl-string"),
    (
        _ATTRIBUTES,
        "secrm unrm compr fs-sync immutable fs-append nodump fs-noatime journal-data notail dirsync",
    ),
    ("the kernel's own size is right for a relay", "f-setpipe-sz setpipe"),
    (_PRIVILEGES, "chroot chroot-early setgid setgid-early setuid setuid-early su su-d setpgid"),
    ("ip netns exec starts it in another network namespace", "netns"),
    ("there is no READLINE: rlwrap(1) wraps it", "history noprompt noecho prompt"),
    (_INTERFACES, "so-bindtodevice interface-mtu retrieve-vlan tun-device tun-name tun-type iff-no-pi"),
    (
        _INTERFACES,
        "iff-up iff-broadcast iff-debug iff-loopback iff-pointopoint iff-notrailers iff-running iff-noarp iff-promisc "
        "iff-allmulti iff-master iff-slave iff-multicast iff-portsel iff-automedia iff-dynamic",
    ),
    ("-d -d -d -d tells more than the kernel's socket debugging", "debug"),
    ("nothing here sends urgent data", "oobinline"),
    ("nothing here waits in a receive or a send; connect-timeout, -t and -T limit waiting", "so-rcvtimeo so-sndtimeo"),
    ("Linux does not let it be changed (socket(7))", "sndlowat"),
    ("a type's name says of what kind its sockets are", "socktype protocol"),
    (
        _ANCILLARY,
        "so-timestamp ip-pktinfo ip-recverr ip-recvopts ip-recvtos ip-recvttl ipv6-recvdstopts ipv6-recvhoplimit "
        "ipv6-recvhopopts ipv6-recvpktinfo ipv6-recvrthdr ipv6-recvtclass",
    ),
    ("a socket without bind= is given a name by the kernel where it needs one", "bind-tempname"),
    ("names are always given at their own length, as socat does by default", "unix-tightsocklen"),
    ("routers drop what carries them (RFC 7126)", "ip-options"),
    ("groups are joined whole: a firewall picks sources", "ip-add-source-membership ipv6-join-source-group"),
    (
        _RESOLVER,
        "ai-addrconfig addrconfig ai-passive passive ai-v4mapped v4mapped ai-all res-debug res-aaonly res-usevc "
        "res-primary res-igntc res-recurse res-defnames res-stayopen res-dnsrch res-retrans res-retry res-nsaddr",
    ),
    ("UDP-DATAGRAM takes any port unless sourceport= says otherwise", "udp-ignore-peerport"),
    ("there is no UDP-Lite, SCTP or DCCP", "udplite-send-cscov udplite-recv-cscov sctp-nodelay sctp-maxseg"),
    ("there is no UDP-Lite, SCTP or DCCP", "dccp-set-ccid ccid"),
    (
        _PROXIES,
        "socksport socksuser sockspass http-version proxyport ignorecr proxy-authorization proxy-authorization-file "
        "resolve",
    ),
    ("range= and allow= say who is let in, without libwrap", "tcpwrap allow-table deny-table tcpwrap-etc"),
    ("a program is always a child: it is reaped, stopped and its failure told", "nofork"),
    ("a shell redirects: SYSTEM:'program <&3'", "fdin fdout"),
    ("a program has its own process group and is told to stop when its relay is", "sighup sigint sigquit"),
    (
        _LATER_TERMIOS,
        "b0 b19200 icanon ignbrk brkint bs0 bs1 bsdly clocal cr0 cr1 cr2 cr3 crdly cread crtscts cs5 cs6 cs7 cs8 csize "
        "cstopb echoctl echoe echok echoke echonl echoprt eof eol eol2 erase discard ff0 ff1 ffdly flusho hupcl icrnl "
        "iexten igncr ignpar imaxbel inlcr inpck intr isig ispeed istrip iuclc ixany ixoff ixon kill lnext min nl0 nl1 "
        "nldly noflsh ocrnl ofdel ofill olcuc onlcr onlret onocr opost ospeed parenb parmrk parodd pendin quit reprint "
        "sane start stop susp swtc tab0 tab1 tab2 tab3 tabdly time tostop vt0 vt1 vtdly werase xcase xtabs "
        "termios-setflags tiocswinsz",
    ),
    ("a terminal whose other side hung up has ended", "sitout-eio"),
    ("deprecated: openssl-min-proto-version and openssl-max-proto-version", "method"),
    ("elliptic curves need no parameters, and everybody has them", "dhparams"),
    (_RANDOM, "egd pseudo"),
    ("the size of TLS's records is left to OpenSSL", "openssl-maxfraglen openssl-maxsendfrag"),
    ("TLS 1.3 has no compression, and before it is a leak (CRIME)", "compress"),
    ("FIPS mode is the system's to set", "fips"),
    (_QUEUES, "posixmq-priority posixmq-flush posixmq-maxmsg posixmq-msgsize"),
)

_OTHER_PROTOCOLS = "vsock, TCP, UDP and UNIX sockets are the relay's subject"


def _families(stem: str, *suffixes: str) -> str:
    return " ".join(f"{stem}{digit}{suffix}" for digit in ("", "4", "6") for suffix in suffixes)


_TYPES = (
    (_OTHER_PROTOCOLS, _families("DCCP", "", "-CONNECT", "-LISTEN", "-L")),
    (_OTHER_PROTOCOLS, _families("SCTP", "", "-CONNECT", "-LISTEN", "-L")),
    (
        _OTHER_PROTOCOLS,
        _families(
            "UDPLITE", "", "-CONNECT", "-DATAGRAM", "-DGRAM", "-LISTEN", "-L", "-SENDTO", "-SEND", "-RECVFROM", "-RECV"
        ),
    ),
    (_OTHER_PROTOCOLS, _families("IP", "", "-SENDTO", "-SEND", "-DATAGRAM", "-DGRAM", "-RECVFROM", "-RECV")),
    (
        "every kind of socket here has a type of its own",
        "SOCKET-CONNECT SOCKET-DATAGRAM SOCKET-LISTEN SOCKET-RECV SOCKET-RECVFROM SOCKET-SENDTO DATAGRAM DGRAM SENDTO",
    ),
    ("a service manager's sockets go to vsockfwd forward fd:NAME", "ACCEPT-FD ACCEPT"),
    (
        "Python's ssl has no DTLS",
        "OPENSSL-DTLS-CLIENT OPENSSL-DTLS-SERVER OPENSSL-DTLS-CONNECT OPENSSL-DTLS-LISTEN DTLS DTLS-CLIENT "
        "DTLS-CONNECT DTLS-C DTLS-LISTEN DTLS-SERVER DTLS-L",
    ),
    (
        _QUEUES,
        "POSIXMQ POSIXMQ-BIDIRECTIONAL POSIXMQ-READ POSIXMQ-RECEIVE POSIXMQ-RECV POSIXMQ-SEND POSIXMQ-WRITE",
    ),
    (_PROXIES, "PROXY PROXY-CONNECT SOCKS SOCKS4 SOCKS4A SOCKS5 SOCKS5-CONNECT SOCKS5-LISTEN SOCKS5-BIND"),
    ("rlwrap(1) wraps a relay in it", "READLINE"),
    ("SYSTEM:'sleep infinity' says nothing for ever", "STALL"),
    ("EXEC:'printf %s …' says a text", "TEXT"),
    (_INTERFACES, "INTERFACE IF TUN"),
)


def _by_name(groups: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {name: reason for reason, names in groups for name in names.split()}


ABSENT_OPTIONS = _by_name(_OPTIONS)
ABSENT_TYPES = _by_name(_TYPES)
"""Name → why it is not built."""

ABSENT_FLAGS: Mapping[str, str] = {
    "-D": "ls -l /proc/self/fd shows descriptors",
    "-S": "signals end the relay in order, and need no log",
    "-g": "an option that does not fit would do nothing",
    "--experimental": "nothing here is",
}

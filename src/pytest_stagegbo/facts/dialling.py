"""Connections tried from inside of a container, all at once, and what became of each.

Perl does it, since every Debian has it (package perl-base is essential) and it tells one error from another, which
shells don't. One command a container, whatever the number of connections.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ANSWERED", "REFUSED", "SILENT", "UNREACHABLE", "Answer", "Target", "command", "listener", "read_answers"]

ANSWERED, REFUSED, UNREACHABLE, SILENT = STATES = "answered", "refused", "unreachable", "silent"
SECONDS = 2.0
"""For all connections of a container together. What is stopped is stopped at once; only silence takes longer."""
LISTENS = 20
"""Seconds after which a listener ends by itself."""

_DIAL = r"""
use strict; use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6); use Fcntl; use Errno;
my ($seconds, @targets) = @ARGV;
my (%open, %said, %text);
sub ending { my ($id, $n) = @_;
  $said{$id} = $n == 0 ? "answered" : ($n == Errno::ECONNREFUSED || $n == Errno::ECONNRESET) ? "refused"
    : ($n == Errno::EHOSTUNREACH || $n == Errno::ENETUNREACH || $n == Errno::EACCES || $n == Errno::EPERM
       || $n == Errno::EINVAL || $n == Errno::EAFNOSUPPORT || $n == Errno::EADDRNOTAVAIL) ? "unreachable"
    : $n == Errno::ETIMEDOUT ? "silent" : "error-$n"; }
sub start { my ($id) = @_;
  my ($host, $port) = split m{/}, $id;
  my $six = $host =~ /:/;
  socket(my $s, $six ? PF_INET6 : PF_INET, SOCK_STREAM, 0) or return ending($id, $! + 0);
  fcntl($s, F_SETFL, O_NONBLOCK);
  my $to = $six ? pack_sockaddr_in6($port, inet_pton(AF_INET6, $host)) : sockaddr_in($port, inet_aton($host));
  if (connect($s, $to) || $! == Errno::EINPROGRESS) { $open{$id} = $s; } else { ending($id, $! + 0); }
}
while (my @some = splice @targets, 0, 400) {
  start($_) for @some;
  my $end = time + $seconds;
  while (%open && time <= $end) {
    my ($w, $r) = ("", "");
    for (keys %open) { vec(exists $text{$_} ? $r : $w, fileno($open{$_}), 1) = 1; }
    select(my $rr = $r, my $ww = $w, undef, 0.1);
    for my $id (keys %open) {
      my $s = $open{$id};
      if (!exists $text{$id} && vec($ww, fileno($s), 1)) {
        my $n = unpack("i", getsockopt($s, SOL_SOCKET, SO_ERROR));
        ending($id, $n);
        if ($n == 0 && $id =~ m{/name$}) { $text{$id} = ""; } else { delete $open{$id}; }
      } elsif (exists $text{$id} && vec($rr, fileno($s), 1)) {
        my $got = sysread($s, my $part, 200);
        if ($got) { $text{$id} .= $part; } else { delete $open{$id}; }
      }
    }
  }
  %open = ();
  print "$_ ", $said{$_} // "silent", " ", ($text{$_} // "") =~ s/\s//gr, "\n" for @some;
}
"""

_LISTEN = r"""
use strict; use Socket;
my ($port, $name, $seconds) = @ARGV;
socket(my $s, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
bind($s, sockaddr_in($port, INADDR_ANY)) or die "bind: $!";
listen($s, 64) or die "listen: $!";
exit if fork;
open STDIN, "</dev/null"; open STDOUT, ">/dev/null"; open STDERR, ">/dev/null";
alarm $seconds;
while (accept(my $c, $s)) { syswrite($c, "$name\n"); close $c; }
"""


class Target(Struct, frozen=True):
    """Where to connect to."""

    host: str
    port: int
    name: bool = False
    """Whether to read who answers: at a `listener`."""

    @property
    def word(self) -> str:
        """As it is given to the container, and comes back."""
        return f"{self.host}/{self.port}" + ("/name" if self.name else "")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Answer(Struct, frozen=True):
    """What became of one connection."""

    state: str
    """`answered`, `refused`, `unreachable` or `silent`."""
    name: str = ""
    """Who answered, at a listener."""


def command(targets: list[Target]) -> list[str]:
    """What to execute in a container to try all of `targets`."""
    return ["perl", "-e", _DIAL, str(int(SECONDS)), *(target.word for target in targets)]


def read_answers(text: str) -> dict[Target, Answer]:
    """What `command` printed. A line that is none of its own, or is cut off, is no answer."""
    found = {}
    for line in text.splitlines():
        where, state, name = (*line.split(" "), "", "")[:3]
        host, port, *rest = (*where.split("/"), "")
        if state in STATES and port.isdigit():
            found[Target(host, int(port), rest[:1] == ["name"])] = Answer(state, name)
    return found


def listener(port: int, name: str) -> list[str]:
    """What to execute in a container so that it says `name` to whoever connects to `port`, for some seconds."""
    return ["perl", "-e", _LISTEN, str(port), name, str(LISTENS)]

"""The program in a clone that connects to its services, and copies bytes between these and its standard streams.

It keeps its name: Perl writes another one over its environment, by which resets know that it is no test's.

Perl, since every Debian has it (package perl-base is essential). It ends when its standard input does, however its
client or the daemon died, and when it has heard nothing for `SILENCE` seconds: a network that is cut says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.forward import frames

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SILENCE", "command"]

SILENCE = 60
"""Seconds without anything from the other side, after which it is taken for dead."""

_RELAY = r"""
use strict; use Socket qw(:DEFAULT IPPROTO_TCP TCP_NODELAY); use Fcntl; use Errno;
use constant { OPEN => 1, OPENED => 2, FAILED => 3, DATA => 4, END => 5, RESET => 6, CREDIT => 7, PING => 8 };
use constant { SOCK => 0, TODO => 1, ROOM => 2, DONE => 3, ENDING => 4, READ => 5, WRITTEN => 6, HOSTS => 7,
  PORT => 8, ID => 9, FD => 10, WIDTH => 11 };
my ($window, $widest, $silence, @hosts) = @ARGV;
my ($chunk, $most, $pipe_size) = (1 << 17, 1 << 20, 1031);
my (%by_id, %by_fd);
my ($in, $out, $R, $W, $alone) = ("", "", "", "", "");
$SIG{PIPE} = "IGNORE";
for (*STDIN, *STDOUT) {
  binmode $_; fcntl($_, F_SETFL, fcntl($_, F_GETFL, 0) | O_NONBLOCK); fcntl($_, $pipe_size, $most);
}
sub say_to { my ($id, $kind, $content) = @_; $out .= pack("NN", $id, $kind << 24 | length $content) . $content; }
sub later { $!{EAGAIN} || $!{EINTR} }
sub drop { my ($c) = @_;
  delete $by_id{$c->[ID]};
  if (defined $c->[SOCK]) {
    delete $by_fd{$c->[FD]}; vec($R, $c->[FD], 1) = 0; vec($W, $c->[FD], 1) = 0;
    close $c->[SOCK]; undef $c->[SOCK];
  }
}
sub break_off { my ($c) = @_;
  setsockopt($c->[SOCK], SOL_SOCKET, SO_LINGER, pack("ii", 1, 0)) if defined $c->[SOCK];
  drop($c);
}
sub broken { my ($c) = @_; say_to($c->[ID], RESET, ""); break_off($c); }
sub finish { my ($c) = @_; drop($c) if $c->[READ] && $c->[WRITTEN]; }
sub start { my ($c) = @_;
  my $why = "unreachable";
  while (defined(my $host = shift @{$c->[HOSTS]})) {
    unless (socket($c->[SOCK], PF_INET, SOCK_STREAM, 0)) { $why = "too many open files"; undef $c->[SOCK]; last; }
    my $s = $c->[SOCK];
    $c->[FD] = fileno $s; $by_fd{$c->[FD]} = $c;
    fcntl($s, F_SETFL, O_NONBLOCK); setsockopt($s, IPPROTO_TCP, TCP_NODELAY, 1);
    if (connect($s, sockaddr_in($c->[PORT], inet_aton($host)))) { connected($c); return; }
    if ($!{EINPROGRESS}) { vec($W, $c->[FD], 1) = 1; return; }
    $why = $!{ECONNREFUSED} ? "refused" : "unreachable";
    my $id = $c->[ID]; drop($c); $by_id{$id} = $c;
  }
  say_to($c->[ID], FAILED, $why); drop($c);
}
sub connected { my ($c) = @_;
  my ($port) = sockaddr_in(getsockname $c->[SOCK]);
  $c->[HOSTS] = undef;
  say_to($c->[ID], OPENED, pack("N", $port));
  vec($R, $c->[FD], 1) = 1; vec($W, $c->[FD], 1) = 0;
  deliver($c);
}
sub tried { my ($c) = @_;
  my $n = unpack("i", getsockopt($c->[SOCK], SOL_SOCKET, SO_ERROR));
  if ($n == 0) { connected($c) if defined getpeername($c->[SOCK]); return; }
  my $id = $c->[ID]; drop($c); $by_id{$id} = $c;
  if (@{$c->[HOSTS]}) { start($c); return; }
  say_to($id, FAILED, $n == Errno::ECONNREFUSED ? "refused" : $n == Errno::ETIMEDOUT ? "silent" : "unreachable");
  drop($c);
}
sub deliver { my ($c) = @_;
  return if $c->[HOSTS];
  if (length $c->[TODO]) {
    my $n = syswrite($c->[SOCK], $c->[TODO]);
    if (defined $n) {
      substr($c->[TODO], 0, $n, ""); $c->[DONE] += $n;
      if ($c->[DONE] >= $c->[WIDTH] / 2) {
        my $more = length $c->[TODO] || $c->[WIDTH] >= $widest ? 0 : $c->[WIDTH];
        $c->[WIDTH] += $more;
        say_to($c->[ID], CREDIT, pack("N", $c->[DONE] + $more)); $c->[DONE] = 0;
      }
    } elsif (!later()) { broken($c); return; }
  }
  vec($W, $c->[FD], 1) = length $c->[TODO] ? 1 : 0;
  if ($c->[ENDING] && !$c->[WRITTEN] && !length $c->[TODO]) {
    shutdown($c->[SOCK], 1); $c->[WRITTEN] = 1; finish($c);
  }
}
sub take { my ($c) = @_;
  my $n = sysread($c->[SOCK], my $part, $c->[ROOM] < $chunk ? $c->[ROOM] : $chunk);
  if ($n) {
    say_to($c->[ID], DATA, $part); $c->[ROOM] -= $n;
    vec($R, $c->[FD], 1) = 0 if $c->[ROOM] <= 0;
  } elsif (defined $n) {
    vec($R, $c->[FD], 1) = 0; $c->[READ] = 1; say_to($c->[ID], END, ""); finish($c);
  } elsif (!later()) { broken($c); }
}
sub heard { my ($id, $kind, $content) = @_;
  if ($kind == PING) { say_to($id, PING, ""); return; }
  if ($kind == OPEN) {
    start($by_id{$id} = [undef, "", $window, 0, 0, 0, 0, [@hosts], $content, $id, -1, $window]);
    return;
  }
  my $c = $by_id{$id} or return;
  if ($kind == DATA) { $c->[TODO] .= $content; deliver($c); }
  elsif ($kind == CREDIT) {
    $c->[ROOM] += unpack("N", $content);
    vec($R, $c->[FD], 1) = 1 if !$c->[READ] && !$c->[HOSTS];
  }
  elsif ($kind == END) { $c->[ENDING] = 1; deliver($c); }
  elsif ($kind == RESET) { break_off($c); }
}
vec($R, 0, 1) = 1; vec($alone, 0, 1) = 1; alarm $silence;
while (1) {
  vec($W, 1, 1) = length $out ? 1 : 0;
  my $ready = select(my $r = length $out > $most ? $alone : $R, my $w = $W, undef, undef);
  next if $ready < 0;
  for my $fd (keys %by_fd) {
    my $c = $by_fd{$fd} or next;
    if (vec($w, $fd, 1)) { $c->[HOSTS] ? tried($c) : deliver($c); }
    take($c) if vec($r, $fd, 1) && defined $c->[SOCK] && !$c->[HOSTS] && !$c->[READ];
  }
  if (vec($r, 0, 1)) {
    my $n = sysread(STDIN, $in, 2 * $chunk, length $in);
    exit if defined $n ? !$n : !later();
    alarm $silence;
    my $at = 0;
    while (length($in) - $at >= 8) {
      my ($id, $word) = unpack("NN", substr($in, $at, 8));
      my $length = $word & 0xffffff;
      last if length($in) - $at < 8 + $length;
      heard($id, $word >> 24, substr($in, $at + 8, $length));
      $at += 8 + $length;
    }
    substr($in, 0, $at, "");
  }
  if (length $out) {
    my $n = syswrite(STDOUT, $out, $most);
    if (defined $n) { substr($out, 0, $n, ""); } elsif (!later()) { exit; }
  }
}
"""


def command(hosts: Sequence[str]) -> list[str]:
    """What to execute in a clone.

    Args:
        hosts: Addresses of the clone's own, tried in this order: a service need not listen on all of them.
    """
    return ["perl", "-e", _RELAY, str(frames.WINDOW), str(frames.WIDEST), str(SILENCE), *hosts]

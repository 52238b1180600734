package Launchd;

# What the stand-ins for Apple's tools share: a folder of state, a log of every call, and faults at the n-th call. A
# stand-in finds its Mac by where it is itself: the nearest folder above it with `lib/Launchd.pm`. No variable of the
# environment says so, because sudo and the product drop those.
#
#   state/log            one line per call: `UID: COMMAND LINE`
#   state/calls          how many there were
#   state/conf           key=value lines: see tests/launchd/launchd.ts, sudo and guard
#   state/fault          lines `WHEN HOW`: WHEN is the number of a call, or a word and the how-manyeth call with it
#                        (`bootstrap:1`); HOW is
#        N       fails with status N and does nothing
#        after:N does it, and fails with status N
#        hang    does nothing and never ends
#        late    does it and never ends
#        killed  does nothing and dies by SIGKILL
#   state/alive/PID             a process that lives, as far as the stand-ins go
#   state/exit/PID              how it ended, once it is not alive (else 0)
#   state/sessions/UID          a user is logged in at the screen
#
# The tests start these ten thousand times, and most of a start is reading modules: `-w` stands for `use warnings`, and
# what Cwd and Socket would do is done here.

use strict;
use Exporter 'import';
our @EXPORT = qw(state_dir conf slurp spit begin finish ask_launchd lines_of user_of end_process);

sub state_dir { "$main::ROOT/state" }

sub slurp {
    my ($path) = @_;
    open my $file, '<', $path or return undef;
    local $/;
    return scalar <$file> // '';
}

sub spit {
    my ($path, $text) = @_;
    open my $file, '>', "$path.$$" or die "stand-in: $path: $!\n";
    print $file $text;
    close $file;
    rename "$path.$$", $path or die "stand-in: $path: $!\n";
}

sub lines_of { my ($path) = @_; return split /\n/, slurp($path) // "" }

sub conf {
    my ($key, $default) = @_;
    for (lines_of(state_dir() . '/conf')) { return $1 if /^\Q$key\E=(.*)$/ }
    return $default;
}

our $fault;
my $parent = getppid;

# Without an end, as far as the caller can see; not longer than that lives.
sub hang {
    select undef, undef, undef, 0.2 while getppid == $parent;
    kill 'KILL', $$;
}

# Counts and logs the call, and does what this call's fault wants done before it.
sub begin {
    my $dir = state_dir();
    our $umask = umask 0;
    open my $lock, '>', "$dir/lock" or die "stand-in: $!\n";
    flock $lock, 2;
    my $line = join " ", "$>:", $0 =~ s{.*/}{}r, @ARGV;
    my $n = (slurp("$dir/calls") || 0) + 1;
    spit("$dir/calls", $n);
    open my $log, '>>', "$dir/log" or die "stand-in: $!\n";
    print $log "$line\n";
    close $log;
    open my $paths, '>>', "$dir/paths" or die "stand-in: $!\n";
    print $paths join(' ', $ENV{PATH} // 'none', grep { defined } @ENV{qw(LIMA_HOME TMPDIR)}), "\n";
    close $paths;
    my @log = lines_of("$dir/log");
    for (lines_of("$dir/fault")) {
        my ($when, $how) = split ' ';
        my ($word, $nth) = $when =~ /^(\D[^:]*):(\d+)$/;
        my $same = defined $word ? ($line =~ /\b\Q$word\E\b/ && $nth == grep { /\b\Q$word\E\b/ } @log) : $when eq $n;
        $fault = $how if $same;
    }
    close $lock;
    return unless defined $fault;
    exit $fault if $fault =~ /^\d+$/;
    kill 'KILL', $$ if $fault eq 'killed';
    hang() if $fault eq 'hang';
}

# Ends the call, or does what its fault wants done after it.
sub finish {
    my ($code) = @_;
    close STDOUT;
    hang() if ($fault // '') eq 'late';
    exit(($fault // '') =~ /^after:(\d+)$/ ? $1 : $code // 0);
}

# What the launchd of the test answers: (status, stdout, stderr). Without one it fails as launchctl does.
sub ask_launchd {
    # AF_UNIX and SOCK_STREAM are 1 everywhere; BSD's address begins with its length.
    socket(my $socket, 1, 1, 0) or die "stand-in: $!\n";
    my $path = "$main::ROOT/lib/launchd.sock";
    connect($socket, $^O eq 'darwin' ? pack('C2 Z104', 106, 1, $path) : pack('S Z108', 1, $path))
        or return (5, '', "Could not contact launchd: $!\n");
    syswrite $socket, join("\0", $>, @_) . "\n\0\n";
    my $answer = '';
    1 while sysread $socket, $answer, 65536, length $answer;
    my ($code, $stdout, $stderr) = split /\0/, $answer, 3;
    return ($code // 5, $stdout // '', $stderr // '');
}

sub end_process {
    my ($pid, $status) = @_;
    spit(state_dir() . "/exit/$pid", $status);
    unlink state_dir() . "/alive/$pid";
}

# A user of `state/users`, by name or number: (name, uid, gid, home, groups).
sub user_of {
    my ($who) = @_;
    for (lines_of(state_dir() . '/users')) {
        my ($name, $groups, $uid, $gid, @rest) = split /:/;
        return ($name, $uid, $gid, $rest[-2], $groups) if $who eq $name || $who eq $uid;
    }
    return ();
}

1;

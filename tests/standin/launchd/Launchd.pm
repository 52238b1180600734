package Launchd;

# What the stand-ins for Apple's tools share: a folder of state, a log of every call, and faults at the n-th call. A
# stand-in finds its Mac by where it is itself: the nearest folder above it with `lib/Launchd.pm`. No variable of the
# environment says so, because sudo and the product drop those.
#
#   state/log            one line per call: `UID: COMMAND LINE`
#   state/calls          how many there were
#   state/paths          the PATH of each call, and a LIMA_HOME and TMPDIR that it should not have
#   state/conf           key=value lines: see launchctl, sudo and guard
#   state/fault          lines `WHEN HOW`: WHEN is the number of a call, or a word and the how-manyeth call with it
#                        (`bootstrap:1`); HOW is
#        N       fails with status N and does nothing
#        after:N does it, and fails with status N
#        hang    does nothing and never ends
#        late    does it and never ends
#        killed  does nothing and dies by SIGKILL
#   state/jobs/DOMAIN,LABEL     a loaded job
#   state/disabled/DOMAIN,LABEL a disabled override
#   state/alive/PID             a process that lives, as far as the stand-ins go
#   state/exit/PID              how it ended, once it is not alive (else 0)
#   state/sessions/UID          a user is logged in at the screen

use strict;
use warnings;
use Exporter 'import';
our @EXPORT = qw(state_dir conf slurp spit begin finish jobs read_job write_job plist_of new_pid lines_of user_of end_process);

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

my $fault;
my $parent = getppid;

# For ever, as far as whoever has called us can see; not longer than that lives.
sub hang {
    select undef, undef, undef, 0.2 while getppid == $parent;
    kill 'KILL', $$;
}

# Counts and logs the call, and does what a fault of this call wants done before it.
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

sub jobs { my $dir = state_dir() . '/jobs'; opendir my $d, $dir or return (); return grep { /,/ } readdir $d }

# A job: `key value` lines, `arg` once for each argument.
sub read_job {
    my ($id) = @_;
    my $text = slurp(state_dir() . "/jobs/$id") // return undef;
    my %job = (arg => [], env => []);
    for (split /\n/, $text) {
        my ($key, $value) = split / /, $_, 2;
        if ($key eq 'arg' || $key eq 'env') { push @{$job{$key}}, $value // '' }
        else { $job{$key} = $value }
    }
    return \%job;
}

sub write_job {
    my ($id, $job) = @_;
    my @lines = map { "$_ $job->{$_}" } grep { !ref $job->{$_} && defined $job->{$_} } sort keys %$job;
    spit(state_dir() . "/jobs/$id", join '', map { "$_\n" } @lines, (map { "env $_" } @{$job->{env}}), map { "arg $_" } @{$job->{arg}});
}

sub new_pid {
    my $dir = state_dir();
    my $pid = (slurp("$dir/pid") || 900_000) + 1;
    spit("$dir/pid", $pid);
    spit("$dir/alive/$pid", '');
    return $pid;
}

sub unescape {
    my ($text) = @_;
    my %entity = (lt => '<', gt => '>', amp => '&', apos => "'", quot => '"');
    $text =~ s/&(lt|gt|amp|apos|quot);/$entity{$1}/g;
    return $text;
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

# What launchd takes from a plist; undef where the file is not whole.
sub plist_of {
    my ($path) = @_;
    my $text = slurp($path) // return undef;
    $text =~ s/<!--.*?-->//gs;
    return undef unless $text =~ m{</plist>\s*$} && $text =~ m{<key>\s*Label\s*</key>\s*<string>(.*?)</string>}s;
    my %plist = (Label => unescape($1));
    return undef unless $text =~ m{<key>\s*ProgramArguments\s*</key>\s*<array>(.*?)</array>}s;
    $plist{args} = [map { unescape($_) } $1 =~ m{<string>(.*?)</string>}gs];
    my ($env) = $text =~ m{<key>\s*EnvironmentVariables\s*</key>\s*<dict>(.*?)</dict>}s;
    my %env = ($env // '') =~ m{<key>(.*?)</key>\s*<string>(.*?)</string>}gs;
    $plist{env} = [map { "$_=" . unescape($env{$_}) } sort keys %env];
    $plist{timeout} = $text =~ m{<key>\s*ExitTimeOut\s*</key>\s*<integer>\s*(\d+)}s ? $1 : 5;
    $plist{user} = $text =~ m{<key>\s*UserName\s*</key>\s*<string>(.*?)</string>}s ? unescape($1) : '';
    my ($keep) = $text =~ m{<key>\s*KeepAlive\s*</key>\s*(<true/>|<dict>.*?</dict>)}s;
    $keep //= '';
    $plist{keeps} = $keep eq '<true/>' ? 'always' : $keep =~ m{SuccessfulExit\s*</key>\s*<(true|false)/>} ? "success-$1" : $keep ? 'always' : '';
    $plist{starts} = $text =~ m{<key>\s*(?:RunAtLoad</key>\s*<true/>|KeepAlive\s*</key>\s*<(?:dict|true))}s ? 1 : 0;
    return \%plist;
}

1;

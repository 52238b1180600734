package Standin;

# What the stand-ins for limactl, QEMU, krunkit and external drivers share: looking right in `ps`, a small event loop,
# unix sockets, and the virtual machine that they pretend to run.
#
# Only modules of Debian's perl-base and macOS's perl are used. Time::HiRes and JSON::PP are not among them. IO::Socket is,
# and takes as long to load as all others together: a suite starts thousands of these.

use strict;
use warnings;
use Dress ();
use Errno qw(EINTR ENOENT ECONNREFUSED EAGAIN);
use Exporter 'import';
use Fcntl qw(:flock F_SETFL O_NONBLOCK O_CREAT O_RDWR O_WRONLY O_APPEND O_EXCL);
use POSIX ();
use Socket qw(AF_INET AF_UNIX INADDR_LOOPBACK SOCK_STREAM pack_sockaddr_in pack_sockaddr_un unpack_sockaddr_in);

our @EXPORT = qw(
    dress become interpreter program program_dir sibling
    read_file write_file append_line remove conf_of now_ms timestamp json_string may_signal is_there
    listen_unix hold_unix connect_unix closed_port serve turn wait_until signalled take_signals
    vm_on vm_asked_off vm_ask_off vm_off_cleanly vm_is_on
);

# --- what is played --------------------------------------------------------------------------------------------------

my ($PROGRAM, @ARGS);

# The arguments, in a process that looks as if it were PROGRAM itself: see Dress.pm.
sub dress {
    Dress::again();
    ($PROGRAM, @ARGS) = split /\x1f/, delete $ENV{STANDIN_ARGV}, -1;
    delete $ENV{STANDIN_FILE};
    my $stdin = delete $ENV{STANDIN_STDIN};
    POSIX::dup2($stdin, 0) && POSIX::close($stdin);    # `-t STDIN` must speak of the terminal, not of the script
    return @ARGS;
}

sub become      { Dress::become(@_) }
sub interpreter { Dress::interpreter(@_) }
sub program     { $PROGRAM }
sub program_dir { my ($dir) = $PROGRAM =~ m{^(.*)/}; $dir }

# Another stand-in: beside the (possibly linked) program, else beside the file that the link leads to.
sub sibling {
    my ($name) = @_;
    my ($real) = Dress::real_path($PROGRAM) =~ m{^(.*)/};
    return -e program_dir() . "/$name" ? program_dir() . "/$name" : "$real/$name";
}

# --- files and text --------------------------------------------------------------------------------------------------

sub read_file { my ($path) = @_; open my $f, '<', $path or return undef; local $/; my $text = <$f>; $text // '' }

sub write_file {
    my ($path, $text, $mode) = @_;
    sysopen my $f, $path, O_CREAT | O_WRONLY | Fcntl::O_TRUNC(), $mode // 0644 or die "stand-in: cannot write $path: $!\n";
    print {$f} $text;
    close $f or die "stand-in: cannot write $path: $!\n";
}

sub append_line { my ($path, $line) = @_; open my $f, '>>', $path or return; syswrite $f, "$line\n" }

sub remove { unlink $_[0] }

# `key=value` lines; `#` begins a comment line.
sub conf_of {
    my ($dir) = @_;
    my %conf = map { /^\s*([a-z_]+)=(.*?)\s*$/ ? ($1 => $2) : () } split /\n/, read_file("$dir/standin.conf") // '';
    return \%conf;
}

# The real programs send signals to whatever number a file holds. On a machine where tests run, that number may by now
# belong to any program: so the test names the processes which may be hit, in LIMA_HOME/standin.may-signal (one PID a line);
# processes whose command line holds one of the WORDS may be hit too. Everything else is to be spared, loudly.
sub may_signal {
    my ($lima_home, $pid, @words) = @_;
    return 1 if grep { $_ eq $pid } split /\s+/, read_file("$lima_home/standin.may-signal") // '';
    open my $ps, '-|', 'ps', '-ww', '-o', 'command=', '-p', $pid or return 0;
    my $command = <$ps> // '';
    return scalar grep { index($command, $_) >= 0 } @words;
}

# What kill(pid, 0) says, EPERM included; a zombie is there. But one that only process 1 has still to wait for is gone:
# a real init does that at once, and where tests run process 1 may be a program that never does.
sub is_there {
    my ($pid) = @_;
    return 0 unless kill(0, $pid) || $! == Errno::EPERM();
    return (read_file("/proc/$pid/stat") // '') !~ /^.*\) Z 1 /s;
}

# A clock that no change of the system's time can turn back; 10 ms fine.
sub now_ms { int((POSIX::times())[0] * 1000 / POSIX::sysconf(POSIX::_SC_CLK_TCK())) }

sub timestamp { POSIX::strftime('%Y-%m-%dT%H:%M:%SZ', gmtime) }

sub json_string {
    my ($text) = @_;
    $text =~ s/([\\"])/\\$1/g;
    $text =~ s/\n/\\n/g;
    $text =~ s/([\x00-\x1f])/sprintf '\\u%04x', ord $1/ge;
    return qq("$text");
}

# --- the event loop --------------------------------------------------------------------------------------------------
#
# A turn lasts at most 20 ms: a signal that comes between looking and waiting costs that much, and the files that the
# stand-in watches (`poweroff`, written by the guest) need no notification.

my $TURN_MS = 20;
my @listeners;      # {fh, on_client, one_at_a_time}
my @clients;        # {fh, listener, buffer, on_data}
my @signals;

sub take_signals { for my $name (@_) { $SIG{$name} = sub { push @signals, $name } } }

# The signal that came first, as a channel of capacity one would hold it; later ones are swallowed.
sub signalled { $signals[0] }

# A socket that is bound and listening; no client is served before serve().
sub hold_unix {
    my ($path) = @_;
    unlink $path;
    my $fh;
    socket($fh, AF_UNIX, SOCK_STREAM, 0) && bind($fh, pack_sockaddr_un($path)) && listen($fh, 16)
        or die "stand-in: cannot listen on $path: $!\n";
    fcntl $fh, F_SETFL, O_NONBLOCK;
    return $fh;
}

# Undef, and $! says why.
sub connect_unix {
    my ($path) = @_;
    my $fh;
    return socket($fh, AF_UNIX, SOCK_STREAM, 0) && connect($fh, pack_sockaddr_un($path)) ? $fh : undef;
}

# A port of 127.0.0.1 where no process listens.
sub closed_port {
    my $fh;
    socket($fh, AF_INET, SOCK_STREAM, 0) && bind($fh, pack_sockaddr_in(0, INADDR_LOOPBACK)) or die "stand-in: $!\n";
    return (unpack_sockaddr_in(getsockname $fh))[0];
}

# ON_DATA gets (client, text so far) and returns what is left of the text, or undef to close. ON_CLIENT may greet.
sub serve {
    my ($fh, %how) = @_;
    push @listeners, { fh => $fh, %how };
    return $fh;
}

sub listen_unix { my ($path, %how) = @_; serve(hold_unix($path), %how) }

sub turn {
    my ($ms) = @_;
    my $want = '';
    for my $listener (@listeners) {
        next if $listener->{one_at_a_time} && grep { $_->{listener} == $listener } @clients;
        vec($want, fileno $listener->{fh}, 1) = 1;
    }
    vec($want, fileno $_->{fh}, 1) = 1 for @clients;
    my $n = select my $ready = $want, undef, undef, ($ms // $TURN_MS) / 1000;
    return if $n <= 0;
    for my $client (@clients) {
        next unless vec $ready, fileno $client->{fh}, 1;
        my $read = sysread $client->{fh}, $client->{buffer}, 65536, length $client->{buffer};
        next if !defined $read && ($! == EINTR || $! == EAGAIN);
        my $rest = $read ? $client->{listener}{on_data}->($client->{fh}, $client->{buffer}) : undef;
        $client->{gone}   = !defined $rest;
        $client->{buffer} = $rest // '';
    }
    for my $listener (@listeners) {
        next unless vec $ready, fileno $listener->{fh}, 1;
        accept(my $fh, $listener->{fh}) or next;
        push @clients, { fh => $fh, listener => $listener, buffer => '' };
        $listener->{on_client}->($fh) if $listener->{on_client};
    }
    @clients = grep { !$_->{gone} } @clients;
}

# Serves until the condition holds; its value is returned. With a limit in ms: undef when the time is over.
sub wait_until {
    my ($condition, $limit_ms) = @_;
    my $end = defined $limit_ms ? now_ms() + $limit_ms : undef;
    while (1) {
        my $value = $condition->();
        return $value if $value;
        return undef  if defined $end && now_ms() >= $end;
        turn();
    }
}

# --- the virtual machine ---------------------------------------------------------------------------------------------
#
# DIR/standin.guest is the guest: `disk` stands for its file system and holds the word `dirty` while it runs; only a
# guest that powered itself off leaves `clean`. A cut leaves `dirty`, because no process is left to write. The lock on
# `vm.lock` says that the machine is on: the kernel drops it however the process ends. The file `poweroff` is the
# guest's wish to be switched off; `mode` may say how long this takes (`slow:MS`).

my ($GUEST, $VM_LOCK, $DISK, $OFF_AT, $BOOTED_AT, $HEARS_AT, $GUEST_OFF_MS, $POWER_BUTTON);

sub vm_on {
    my ($dir, $conf) = @_;
    $GUEST = "$dir/standin.guest";
    mkdir $GUEST;
    unlink "$GUEST/poweroff";
    $BOOTED_AT    = now_ms() + ($conf->{boot_ms}      // 0);
    $HEARS_AT     = now_ms() + ($conf->{deaf_ms}      // 0);
    $GUEST_OFF_MS = $conf->{guest_off_ms}             // 0;
    $GUEST_OFF_MS = $1 if ($conf->{stop} // '') =~ /^slow:(\d+)$/;
    $POWER_BUTTON = ($conf->{stop} // '') ne 'ignore';
    $DISK         = $conf->{guest_disk} // "$GUEST/disk";
    $OFF_AT       = undef;
    write_file($DISK, "dirty\n");
    sysopen $VM_LOCK, "$GUEST/vm.lock", O_CREAT | O_RDWR, 0666 or die "stand-in: $GUEST/vm.lock: $!\n";
    chmod 0666, "$GUEST/vm.lock";
    flock $VM_LOCK, LOCK_EX or die "stand-in: flock: $!\n";
    # A program that asks which process holds the instance's disk gets an answer.
    open our $disk_image, '+<', "$dir/disk";
}

# The power button. A guest that is still booting reacts when it is up; a press before `deaf_ms` is lost.
# `presses` has a line for each.
sub vm_ask_off {
    my $heard = $POWER_BUTTON && now_ms() >= $HEARS_AT;
    append_line("$GUEST/presses", $heard ? 'heard' : 'lost');
    ask_off($GUEST_OFF_MS) if $heard;
}

sub ask_off {
    my ($ms) = @_;
    my $from = now_ms() > $BOOTED_AT ? now_ms() : $BOOTED_AT;
    my $at = $from + $ms;
    $OFF_AT = $at if !defined $OFF_AT || $at < $OFF_AT;
}

# Did the guest ask for it, and is it time? To be called in every turn.
sub vm_asked_off {
    if (!defined $OFF_AT && -e "$GUEST/poweroff") {
        ask_off((read_file("$GUEST/mode") // '') =~ /^slow:(\d+)/ ? $1 : $GUEST_OFF_MS);
    }
    return defined $OFF_AT && now_ms() >= $OFF_AT;
}

sub vm_off_cleanly {
    return unless $VM_LOCK;
    write_file($DISK, "clean\n");
    unlink "$GUEST/poweroff";
    our $disk_image;
    close $disk_image if $disk_image;
    close $VM_LOCK;
    undef $VM_LOCK;
}

sub vm_is_on { defined $VM_LOCK }

1;

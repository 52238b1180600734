package Dress;

# Looking right in `ps`. `ps -o command=` prints the arguments joined by blanks. A script started by its #! line shows
# `/usr/bin/perl` first, and assigning to $0 leaves blanks (Linux) or empty arguments (macOS) behind the text, so that a
# path at its end would not be at the end. Therefore the stand-in runs perl again with ONE argument, argv[0], which is the
# whole text, and the program comes on standard input. What really were the arguments travels in the environment, and is
# taken out of it at once, so that children are born without it.
#
# It comes before everything that is slow to load: the first of the two perls ends there. So no module is loaded that need not be.

# Called in a BEGIN by every stand-in: from here on the process looks as if it were the program itself.
sub again {
    become(absolute($0), @ARGV) unless defined $ENV{STANDIN_FILE};
}

# Same process, new program and arguments.
sub become {
    my ($program, @args) = @_;
    my $file = real_path($program);
    local $^F = 255;    # the copy of standard input must survive the exec
    my $stdin;
    open $stdin, '<&', \*STDIN or open $stdin, '<', '/dev/null' or die "stand-in: $!\n";
    read_from($file);
    $ENV{STANDIN_FILE}  = $file;
    $ENV{STANDIN_ARGV}  = join "\x1f", $program, @args;
    $ENV{STANDIN_STDIN} = fileno $stdin;
    look_like(join ' ', $program, @args);
}

# Perl's own STDIN keeps the number 0 when it is opened again.
sub read_from {
    my ($file) = @_;
    open STDIN, '<', $file or die "stand-in: cannot read $file: $!\n";
}

sub look_like {
    my ($text) = @_;
    my $perl = interpreter();
    exec { $perl } $text or die "stand-in: cannot run $perl: $!\n";
}

# perl, by path. Not by its own name for itself: Apple's perl takes that from argv[0], which here is the command line of
# what is played; and /usr/bin/perl chooses one of several perls by argv[0] on some versions of macOS.
sub interpreter {
    my ($system, @files) = @_ ? @_ : $^O;
    return do { require Config; $Config::Config{perlpath} } if $system ne 'darwin';
    opendir my $bin, '/usr/bin' or die "stand-in: /usr/bin: $!\n";
    @files = grep { -x } map { "/usr/bin/$_" } readdir $bin unless @_;
    my ($newest) = sort { $b <=> $a } map { m{^/usr/bin/perl5\.(\d+)$} ? $1 : () } @files;
    return defined $newest ? "/usr/bin/perl5.$newest" : '/usr/bin/perl';
}

sub absolute {
    my ($path) = @_;
    $path = do { require Cwd; Cwd::getcwd() } . "/$path" unless $path =~ m{^/};
    $path =~ s{/\.(?=/)}{}g;
    return $path;
}

# A path with its links resolved. Cwd takes longer to load than perl itself, and is asked only where there is a link.
sub real_path {
    my ($path) = @_;
    my $at = '';
    for my $name (grep { $_ ne '' } split m{/}, $path) {
        $at .= "/$name";
        next unless -l $at || $name =~ /^\.\.?$/;
        require Cwd;
        return Cwd::abs_path($path);
    }
    return $at;
}

1;

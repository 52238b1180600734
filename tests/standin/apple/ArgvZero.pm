package ArgvZero;    # For PERL5OPT: perl as Apple builds it, which takes $^X from argv[0] and not from the kernel.
BEGIN { open my $f, '<', '/proc/self/cmdline' or die "ArgvZero: $!\n"; local $/; ($^X) = split /\0/, <$f>, 2 }
1;

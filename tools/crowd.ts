/** A machine with many processes on it: idle children of one perl, which cannot outlive this program. */

/**
 * Reads a number a line: makes so many children in all, and answers `N` or `N because`. Perl, because it is on every Mac
 * and Linux, and a forked child shares nearly all its memory with its parent (200 KB each are its own).
 *
 * A child waits for the end of a pipe that only its parent can write to: where the parent ends, for whatever reason, all
 * end. The parent ends with its standard input, which is this program's; some by some, because thirty thousand that wake
 * up at once bring any machine to a halt.
 */
const PROGRAM = `
  $| = 1;
  pipe my $idle, my $alive or die;
  my @made;
  while (my $wanted = <STDIN>) {
    my $why = '';
    while (@made < $wanted) {
      my $pid = fork;
      if (!defined $pid) { $why = " $!"; last }
      if (!$pid) { close $alive; close STDIN; close STDOUT; sysread $idle, my $end, 1; POSIX::_exit(0) }
      push @made, $pid;
    }
    print scalar(@made), "$why\\n";
  }
  while (my @some = splice @made, 0, 100) {
    kill 'KILL', @some;
    waitpid $_, 0 for @some;
  }
`;

/** Free numbers that other programs may need meanwhile. */
const SPARE_PIDS = 1000;
const BYTES_EACH = 250_000;

export interface Crowd extends AsyncDisposable {
  /** Makes it so many. Returns why it cannot be had. */
  grow(count: number): Promise<string | undefined>;
}

export function gatherCrowd(): Crowd {
  const child = new Deno.Command("perl", {
    args: ["-MPOSIX", "-e", PROGRAM],
    // A group of its own: Ctrl-C must not end it while it is being counted.
    detached: true,
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const stdin = child.stdin.getWriter();
  const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let size = 0;
  return {
    async grow(count) {
      const why = whyNoRoom(count - size);
      if (why !== undefined) return why;
      await stdin.write(new TextEncoder().encode(`${count}\n`));
      let answer = "";
      while (!answer.endsWith("\n")) {
        const { value, done } = await lines.read();
        if (done) throw new Error("the crowd's parent has ended");
        answer += value;
      }
      const [, made, because] = /^(\d+) ?(.*)\n$/.exec(answer)!;
      size = Number(made);
      return size < count ? `only ${made} processes could be made: ${because}` : undefined;
    },
    async [Symbol.asyncDispose]() {
      await stdin.close().catch(() => {});
      await lines.cancel();
      await child.status; // it has waited for all its children
    },
  };
}

/** Asked before, because a machine whose last PID is taken is of no use. */
function whyNoRoom(more: number): string | undefined {
  const free = Deno.systemMemoryInfo().available;
  if (more * BYTES_EACH > free / 2) return `${more} processes would need more than half of the free memory`;
  if (Deno.build.os !== "linux") return "only Linux has room for so many processes";
  const limit = Number(Deno.readTextFileSync("/proc/sys/kernel/pid_max"));
  // Threads need numbers too: "0.20 0.18 0.12 1/80 11206", the 80 are all of them.
  const taken = Number(/\/(\d+)/.exec(Deno.readTextFileSync("/proc/loadavg"))?.[1]);
  return more + taken + SPARE_PIDS > limit ? `this machine allows ${limit} processes (kernel.pid_max)` : undefined;
}

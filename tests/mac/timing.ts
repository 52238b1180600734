/** How long the commands of a job took, and a Mac that has other things to do meanwhile. */

const NAMES = ["ps", "print", "ssh", "sync"] as const;

export interface Timed {
  /** Median and worst of each, and of how many. */
  readonly text: string;
  /** Seconds. */
  readonly worst: number;
}

/** Reads lines `NAME SECONDS`. */
export function timesOf(text: string): Timed {
  let worst = 0;
  const words = NAMES.map((name) => {
    const found = [...text.matchAll(new RegExp(`^${name} +(\\d+)[.,](\\d+)$`, "gm"))].map((m) =>
      Number(`${m[1]}.${m[2]}`)
    );
    found.sort((a, b) => a - b);
    const most = found.at(-1);
    if (most === undefined) return `${name} not timed`;
    worst = Math.max(worst, most);
    return `${name} ${found.at(Math.floor(found.length / 2))}/${most} s of ${found.length}`;
  });
  return { text: words.join(", "), worst };
}

/** All cores at work, and so many bytes written to, until it is disposed of. */
export function takeCores(bytes: number): Disposable {
  const cores = navigator.hardwareConcurrency;
  const hog = "const a = new Uint8Array(Number(Deno.args[0])); for (let n = 0;; n = (n + 4096) % a.length) a[n]++;";
  const share = String(Math.floor(bytes / cores));
  const command = new Deno.Command(Deno.execPath(), {
    args: ["eval", hog, share],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  });
  const children = Array.from({ length: cores }, () => command.spawn());
  return {
    [Symbol.dispose]() {
      for (const child of children) {
        try {
          child.kill("SIGKILL");
        } catch (error) {
          // It has ended by itself: there was not so much memory.
          if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
        }
      }
    },
  };
}

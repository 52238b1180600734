/** The completions and the man page: made from the tables of options, and understood by the programs they are for. */

import assert from "node:assert/strict";
import { INSTALL_OPTIONS } from "../install.ts";
import { EXIT, OPTIONS, worst } from "../lima_guard.ts";
import { manual } from "../tools/manual.ts";
import { type Home, killChild, project, tempLimaHome, within } from "./helpers/mod.ts";

const MADE = Object.entries(manual());
for (const [file, text] of MADE) {
  Deno.test(`${file} is what \`deno task manual\` makes, and names every option`, async () => {
    assert.equal(await Deno.readTextFile(`${project}/${file}`), text, `${file}: deno task manual`);
    const plain = text.replaceAll("\\-", "-").replaceAll("Fl -", "--").replaceAll("-l ", "--");
    for (const { flag } of [...OPTIONS, ...INSTALL_OPTIONS]) assert.match(plain, new RegExp(`--${flag}\\b(?!-)`), flag);
  });
}

Deno.test("docs/reference.md has a row for each option of lima-guard's own, with the words of --help", () => {
  const text = Deno.readTextFileSync(`${project}/docs/reference.md`).split(/^## Options$/m)[1]?.split(/^## /m)[0] ?? "";
  const rows = [...text.matchAll(/^\| `(-.+?)` +\| (.+?) +\|$/gm)].map(([, option, words]) => [option, words]);
  const own = OPTIONS.map((o) => ({ short: undefined, argument: undefined, ...o }))
    .filter(({ argument }) => !(argument ?? "").includes("INSTANCE"));
  assert.deepEqual(
    rows,
    own.map(({ flag, short, argument, text }) => [
      `${short ? `-${short}, ` : ""}--${flag}${argument ? ` ${argument}` : ""}`,
      text,
    ]),
  );
});

Deno.test("docs/install.md has a row for each option of --install, --check and --uninstall, and no other", () => {
  const text = Deno.readTextFileSync(`${project}/docs/install.md`).split(/^## Options$/m)[1]?.split(/^## /m)[0] ?? "";
  const rows = [...text.matchAll(/^\| (`-.+`) +\| /gm)].flatMap(([, cell = ""]) => [...cell.matchAll(/`(-.+?)`/g)]);
  const named = rows.map(([, option]) => option);
  const options = INSTALL_OPTIONS.map((o) => ({ short: undefined, argument: undefined, ...o }));
  // --help prints the rest: the commands themselves, --all, --help and --version.
  const own = options.filter(({ flag }) => !/^(install|check|uninstall|all|help|version)$/.test(flag));
  const shown = own.map(({ flag, short, argument }) =>
    flag === "verbose" ? `-${short}` : `--${flag}${argument ? ` ${argument}` : ""}`
  );
  assert.deepEqual(named.toSorted(), shown.toSorted());
});

Deno.test("every page that names the order of the statuses has that of the code", () => {
  const statuses = Object.values(EXIT);
  for (const page of ["docs/reference.md", "docs/install.md", "man/lima-guard.1"]) {
    const text = Deno.readTextFileSync(`${project}/${page}`).replaceAll(/\s+/g, " ");
    const orders = [...text.matchAll(/\b\d+(?:, \d+){4,}/g)].map(([order]) => order.split(", ").map(Number));
    assert.equal(orders.length, 1, page);
    for (const order of orders) {
      assert.deepEqual([...order].sort(), [...statuses].sort(), page);
      order.forEach((status, i) => assert.equal(worst(order.slice(i)), status, page));
    }
  }
});

/** Why a program cannot be tried here; undefined where it is there. */
function whyNo(program: string): string | undefined {
  try {
    return new Deno.Command(program, { args: ["--version"], stdin: "null" }).outputSync() && undefined;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return `skipped: no ${program} here`;
  }
}

const skipped = (why: string | undefined) => ({ ignore: why !== undefined, suffix: why ? `: ${why}` : "" });

for (
  const [program, ...args] of [
    ["mandoc", "-T", "lint", "-W", "warning"],
    // groff reads more than it prints: -z.
    ["groff", "-mdoc", "-Tascii", "-ww", "-z"],
  ]
) {
  const { ignore, suffix } = skipped(whyNo(program!));
  Deno.test({
    name: `${program} has nothing to say about the man page${suffix}`,
    ignore,
    async fn() {
      const { stdout, stderr } = await new Deno.Command(program!, { args: [...args, `${project}/man/lima-guard.1`] })
        .output();
      assert.equal(new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr), "");
    },
  });
}

// ── the shells, at a terminal ──

/** How a shell is started, and what makes it ready. */
const SHELLS: Record<string, { start: string; set: (file: string) => string[] }> = {
  bash: { start: "bash --norc --noprofile -i", set: (file) => ["bind 'set bell-style none'", `source ${file}`] },
  zsh: {
    start: "zsh -f -i",
    set: (file) => ["unsetopt beep list_beep", "autoload -U compinit; compinit -u -D", `source ${file}`],
  },
  fish: { start: "fish --no-config --private -i", set: (file) => [`source ${file}`] },
};

/** What is typed (\t is the Tab key), and the arguments that the program then gets. */
const TYPED: [typed: string, args: string][] = [
  ["--stat\t", "--status"],
  ["--sto\tdef\t", "--stop default"],
  ["--dry-r\t--pre k3\t", "--dry-run --pre k3s"],
  ["--pre _net\t", "--pre _net"],
  ["--pre emp\t", "--pre emp"],
  ["--lima-home HOME/other --stop foo\t", "--lima-home HOME/other --stop foo-bar"],
  ["--lima-home=HOME/other --stop foo\t", "--lima-home=HOME/other --stop foo-bar"],
  ["--lima-home HOME/oth\t", "--lima-home HOME/other"],
  ["--install --keep\tk3\t", "--install --keep-alive k3s"],
  ["--install --plist HOME/job.pl\t", "--install --plist HOME/job.plist"],
  // Only what goes with the role.
  ["--stop --keep\t", "--stop --keep"],
  ["--check --timeo\t", "--check --timeo"],
  ["--run k3\t -- limactl-sta\tstart", "--run k3s -- limactl-standin start"],
];

/** The same without LIMA_HOME: the instances of Lima's and of Colima's homes. */
const WITHOUT_LIMA_HOME: [typed: string, args: string][] = [
  ["--stop mi\t", "--stop mine"],
  ["--stop col\t", "--stop colima"],
  ["--stop xd\t", "--stop xdg"],
  ["--stop k3\t", "--stop k3"],
  ["--lima-home HOME/other --stop foo\t", "--lima-home HOME/other --stop foo-bar"],
];

for (const [shell, { start, set }] of Object.entries(SHELLS)) {
  const { ignore, suffix } = skipped(
    Deno.build.os === "linux" ? whyNo(shell) ?? whyNo("script") : "skipped: not Linux",
  );
  Deno.test({
    name: `${shell} completes roles, options, instances, files and the command${suffix}`,
    ignore,
    async fn() {
      await using home = await tempLimaHome();
      for (const name of ["default", "k3s"]) home.instance(name);
      for (const folder of ["lima/empty", "lima/_networks", "other/foo-bar"]) {
        await Deno.mkdir(`${home.root}/${folder}`, { recursive: true });
      }
      await Deno.writeTextFile(`${home.root}/other/foo-bar/lima.yaml`, "");
      for (const path of [".lima/mine", ".colima/_lima/colima", ".config/colima/_lima/xdg"]) {
        await Deno.mkdir(`${home.user}/${path}`, { recursive: true });
        await Deno.writeTextFile(`${home.user}/${path}/lima.yaml`, "");
      }
      await Deno.writeTextFile(`${home.root}/job.plist`, "");
      await Deno.symlink("/bin/true", `${home.bin}/limactl-standin`);
      const guard = `#!/bin/sh\necho "<$*>" | tee -a ${home.root}/got\n`;
      await Deno.writeTextFile(`${home.bin}/lima-guard`, guard, { mode: 0o755 });
      await using terminal = new Terminal(home, start);
      for (const line of set(`${project}/completions/lima-guard.${shell}`)) terminal.type(`${line}\r`);
      for (const [at, [typed, args]] of [...TYPED, ...WITHOUT_LIMA_HOME].entries()) {
        if (at === TYPED.length) terminal.type("export LIMA_HOME=\r");
        terminal.type(`lima-guard ${typed.replaceAll("HOME", home.root)}\r`);
        const got = await terminal.line(`${home.root}/got`, at);
        // A blank after what is complete is of no matter, nor is the slash of a folder.
        assert.equal(
          got.replace(/\/?\s*>$/, ">").replaceAll("  ", " "),
          `<${args.replaceAll("HOME", home.root)}>`,
          typed,
        );
      }
    },
  });
}

/** A shell at a terminal of its own, made by script(1). */
class Terminal implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #end: Promise<void>;
  #shown = "";

  constructor(home: Home, command: string) {
    this.#child = new Deno.Command("script", {
      args: ["-qfec", command, "/dev/null"],
      env: { ...home.env, TERM: "xterm", LANG: "C.UTF-8", PATH: `${home.bin}:/usr/bin:/bin`, PS1: "$ " },
      clearEnv: true,
      cwd: home.root,
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#end = this.#read();
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const bytes of this.#child.stdout) this.#shown += decoder.decode(bytes, { stream: true });
  }

  /** What is typed before the line editor is ready waits in the terminal, as it does for people. */
  type(text: string): void {
    void this.#writer.write(new TextEncoder().encode(text));
  }

  /** The n-th line of a file, as soon as it is there. */
  line(path: string, n: number): Promise<string> {
    const there = (async () => {
      for (;;) {
        const lines = await Deno.readTextFile(path).catch(() => "");
        const line = lines.split("\n").slice(0, -1)[n];
        if (line !== undefined) return line;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
    return within(there, 15_000, () => `line ${n} of ${path}; on the screen:\n${this.#shown}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // An end of the input that comes while a command runs is lost; a word waits in the terminal.
    this.type("exit\r");
    await this.#writer.close();
    const ended = this.#child.status.then(() => {});
    await within(ended, 15_000, () => `the end of the shell; on the screen:\n${this.#shown}`).finally(() => {
      killChild(this.#child);
    });
    await this.#end;
  }
}

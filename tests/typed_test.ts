/**
 * Every command in every document is run here, or needs what no test can have: a Mac, a release, other machines. Those
 * that are run get stand-ins for everything outside, a HOME that is thrown away, and for `--install` a pretended Mac.
 */

import assert from "node:assert/strict";
import { parseInstallArgs } from "../install.ts";
import { parseCommandLine } from "../lima_guard.ts";
import {
  APPLE,
  bare,
  documents,
  isOurs,
  type Need,
  needOf,
  simpleCommands,
  type Typed,
  typedIn,
} from "./helpers/documents.ts";
import { denoFlags, type Home, killChild, project, tempLimaHome, within } from "./helpers/mod.ts";
import { FakeMac, fixture, WHY_NO_MAC, ZOE } from "./install_mac.ts";

const LIMIT_MS = 90_000;
const { name: PACKAGE, tasks } = JSON.parse(Deno.readTextFileSync(`${project}/deno.json`));
const TASKS = Object.keys(tasks);

function isThere(path: string): boolean {
  return Deno.statSync(path) !== undefined;
}
function isFound(path: string): boolean {
  try {
    return isThere(path);
  } catch {
    return false;
  }
}
const FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".split(":");
const isInstalled = (program: string) => FOLDERS.some((folder) => isFound(`${folder}/${program}`));

/** What stands in for the programs outside; each does as much as the documents make use of. `@…@` is filled in. */
const STANDINS: Record<string, string> = {
  // Root's `--all` would be for every user of this machine. `--run` has no end: it is stopped once the guest is up.
  "lima-guard": `case " $* " in
  *" --install "* | *" --check "* | *" --uninstall "*) exec @install@ "$@" ;;
  *" --all "*) set -- "$@" --lima-home "$HOME/.lima" ;;
  *" --run "*)
    rm -f "$HOME/.lima/default/ha.stdout.log"
    @guard@ "$@" &
    up='"running":true'
    while kill -0 $! && ! grep -qs "$up" "$HOME/.lima/default/ha.stdout.log"; do sleep 0.05; done
    kill -TERM $! && wait $!
    exit ;;
esac
exec @guard@ "$@"`,
  sudo: `case $1 in -u) shift 2 ;; -*) shift ;; esac\nexec "$@"`,
  shutdown: `echo "$*" >>@root@/shutdown.called`,
  curl:
    `for word; do case $word in https://hc-ping.com/*) ;; https://*) cp "@root@/release/\${word##*/}" . || exit 22 ;; esac; done`,
  scp: `mkdir -p "@root@/\${2%%:*}" && cp -p "$1" "@root@/\${2%%:*}/\${2#*:}"`,
  // Lima's own calls begin with an option.
  ssh: `case $1 in -*) exec /usr/bin/ssh "$@" ;; esac; cd "@root@/$1" && shift && exec sh -c "$*"`,
  npx: `shift 2; exec deno "$@"`,
  // The other tasks take minutes, or write into the checkout; what they are called with is looked at in the test.
  deno: `case "$*" in
  "task house") exec @deno@ run -A --no-lock @project@/tools/house.ts ;;
  "task demo") exec @deno@ run -A @flags@ @project@/tools/demo.ts ;;
esac`,
};
const has = (program: string) => program in STANDINS || ["limactl", "colima"].includes(program) || isInstalled(program);

const ALL: Typed[] = documents().flatMap((page) => typedIn(page, Deno.readTextFileSync(`${project}/${page}`), has));
const needs = (typed: Typed, line: string): Need[] =>
  simpleCommands(line).map((words) => needOf(words, { ...typed, has }));
const canRun = (typed: Typed, line: string) => needs(typed, line).every((need) => need === "here");

/** Names and folders of the documents, as they are here. */
function filledIn(line: string, root: string, mac: FakeMac | undefined): string {
  // What a job of the pretended Mac runs has to be on it.
  return line.replaceAll("/usr/local/libexec/lima-guard-event", `${mac?.guards ?? `${root}/usr/local/libexec`}/event`)
    .replaceAll(/\bNAME\b/g, "default").replaceAll(/\bOWNER\b/g, "zoe").replaceAll(/\bPLIST\b/g, "./PLIST")
    .replaceAll(/\bFILE\b/g, '"$FILE"').replaceAll(
      /(?<=^|[\s"'])\/(?=(usr\/local|Applications|var\/db|var\/root)\/)/g,
      `${root}/`,
    )
    .replace(Deno.uid() === 0 ? "" : "install -o root", Deno.uid() === 0 ? "" : "install");
}

// ── each command is known, and what it is called with is right ──

Deno.test("documents: no class hides what could be run: a Mac's programs are on a Mac only", () => {
  const here = [...APPLE].filter(isInstalled);
  assert.deepEqual(Deno.build.os === "darwin" ? [] : here, []);
  assert.ok(ALL.length > 100, `only ${ALL.length} are found`);
});

for (const page of new Set(ALL.map((typed) => typed.page))) {
  const here = ALL.filter((typed) => typed.page === page);
  Deno.test(`${page}: what each command needs is known, and the page says so`, () => {
    const text = Deno.readTextFileSync(`${project}/${page}`).replaceAll(/\s+/g, " ");
    const all = here.flatMap((typed) =>
      typed.lines.flatMap((line) => needs(typed, line).map((need) => ({ need, line })))
    );
    assert.deepEqual(all.filter(({ need }) => need === undefined).map(({ line }) => line), []);
    const isOne = (need: Need) => all.some((one) => one.need === need);
    if (isOne("a Mac")) assert.match(text, /not (yet|been) verified on macOS|needs a Mac|on a Mac/i);
    if (isOne("a release")) assert.match(text, /OWNER (is|with) the owner of this repository/);
  });

  Deno.test(`${page}: lima-guard understands every command of its own`, () => {
    const words = here.flatMap((typed) => typed.lines.flatMap(simpleCommands)).filter(isOurs).map(bare);
    for (const [, ...args] of words) {
      // `lima-guard --pre` alone speaks of the command, and is not typed.
      const whole = args.length === 1 && /^--(pre|stop|install|check|uninstall)$/.test(args[0]!)
        ? [...args, "NAME"]
        : args;
      const isInstall = whole.some((word) => /^--(install|check|uninstall)$/.test(word));
      const asked = isInstall ? parseInstallArgs(whole) : parseCommandLine(whole);
      assert.ok(!("usage" in asked), `lima-guard ${args.join(" ")}: ${"usage" in asked ? asked.usage : ""}`);
    }
  });

  Deno.test(`${page}: every task, script and test that Deno is to run is there`, () => {
    const words = here.flatMap((typed) => typed.lines.flatMap(simpleCommands)).map(bare);
    for (const [program, verb, ...args] of words) {
      if (program?.startsWith("tests/")) isThere(`${project}/${program}`);
      if (program !== "deno") continue;
      for (const name of [verb, ...args].filter((word) => word?.startsWith("jsr:"))) {
        assert.equal(name, `jsr:${PACKAGE}`);
      }
      if (verb === "task") assert.ok(TASKS.includes(args[0]!), `deno task ${args.join(" ")}`);
      for (const path of args.filter((word) => /^(tests\/|\w+\.ts$)/.test(word))) isThere(`${project}/${path}`);
      const filter = args.indexOf("--filter");
      if (filter < 0) continue;
      const text = Deno.readTextFileSync(`${project}/${args.find((word) => word.endsWith("_test.ts"))}`);
      assert.ok(text.includes(args[filter + 1]!), `no test has ${args[filter + 1]} in its name`);
    }
  });
}

// ── and what can be run is run ──

/** A user's machine after an unclean reboot, with a folder where things are typed. */
class World implements AsyncDisposable {
  readonly cwd: string;
  mac: FakeMac | undefined;
  private constructor(readonly home: Home) {
    this.cwd = `${home.root}/a/b`;
  }

  static async make(page: string, text: string): Promise<World> {
    const world = new World(await tempLimaHome({ name: "home/.lima" }));
    const { home, cwd } = world;
    for (const dir of [`${home.root}/release`, `${home.root}/dist`, `${home.root}/typed`, `${cwd}/dist`]) {
      Deno.mkdirSync(dir, { recursive: true });
    }
    Deno.mkdirSync(`${home.root}/usr/local/libexec`, { recursive: true });
    const stale = home.instance("default");
    stale.pidFile("vz.pid", 999_999_999);
    for (
      const other of [
        "home/.colima/_lima/colima",
        "home/Library/Application Support/rancher-desktop/lima/0",
        "Applications/Finch/lima/data/finch",
      ]
    ) copyFolder(stale.dir, `${home.root}/${other}`);
    if (/--(install|check|uninstall)\b/.test(text) && WHY_NO_MAC === undefined) await world.#makeMac();
    world.#programs();
    world.#files(page, text);
    return world;
  }

  async #makeMac(): Promise<void> {
    const mac = this.mac = FakeMac.make({ canAsk: true, quick: false });
    mac.folder(mac.guards);
    mac.load("system", mac.daemon("default", fixture(mac, "lima-2.2-daemon")));
    mac.instance("colima", `${mac.home}/.colima/_lima`);
    mac.folder(`${mac.home}/.colima`, ZOE);
    const brew = fixture(mac, "homebrew-colima").replace("opt/colima/bin/", "bin/");
    mac.load("gui/501", mac.write(`${mac.agents}/homebrew.mxcl.colima.plist`, brew, ZOE));
    await mac.run(["--check", "default"]);
  }

  #programs(): void {
    const { home, mac } = this;
    const values: Record<string, string> = {
      root: home.root,
      project,
      deno: Deno.execPath(),
      flags: denoFlags().join(" "),
      guard: `"${Deno.execPath()}" run -A ${denoFlags().join(" ")} "${project}/lima_guard.ts"`,
      install: mac === undefined ? "true" : `"${home.root}/install"`,
    };
    const write = (path: string, body: string) => {
      const text = body.replaceAll(/@(\w+)@/g, (whole, name) => values[name] ?? whole);
      Deno.writeTextFileSync(path, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
    };
    for (const [name, body] of Object.entries(STANDINS)) write(`${home.root}/typed/${name}`, body);
    if (mac === undefined) return;
    write(
      `${home.root}/install`,
      `case " $* " in
  *" colima "*) set -- --reuid 501 --regid 20 --clear-groups env -i HOME=${mac.home} ${mac.source} "$@" ;;
  *) set -- --reuid 0 env -i HOME=${mac.system}/var/root ${mac.source} "$@" ;;
esac
cd / && exec setpriv "$@"`,
    );
  }

  /** A release, and what the reader has in his folder. */
  #files(page: string, text: string): void {
    const { home: { root }, cwd } = this;
    const guard = `${root}/typed/lima-guard`;
    const shell = (script: string) => {
      const { success, stderr } = new Deno.Command("sh", { args: ["-ec", script], cwd: `${root}/release` })
        .outputSync();
      assert.ok(success, new TextDecoder().decode(stderr));
    };
    shell(
      `for target in aarch64 x86_64; do cp "${guard}" lima-guard-$target-apple-darwin; done
      tar -czf lima-guard-manual.tar.gz -C "${project}" completions man LICENSE
      shasum -a 256 lima-guard-* >SHA256SUMS
      cp ./* "${root}/a/../dist"; mkdir "${root}/a/dist"; cp ./* "${cwd}/dist"
      cp "${guard}" "${root}/usr/local/libexec/lima-guard"
      cp "${guard}" "${root}/usr/local/libexec/lima-guard.previous"`,
    );
    if (!text.includes("curl ")) shell(`cp ./* "${cwd}"`);
    shell(`cp "${guard}" "${cwd}/lima-guard"`);
    // The README's own lines make the folder.
    if (!text.includes("mkdir -p /usr/local/bin")) {
      shell(`mkdir "${root}/usr/local/bin"; cp "${guard}" "${root}/usr/local/bin/lima-guard"`);
    }
    for (const name of ["PLIST", "PLIST.before-lima-guard"]) Deno.writeTextFileSync(`${cwd}/${name}`, "");
    copyFolder(`${project}/examples/events`, `${cwd}/examples/events`);
    const folder = page.slice(0, page.lastIndexOf("/") + 1);
    if (folder.startsWith("examples/")) copyFolder(`${project}/${folder}`, cwd);
  }

  /** Types the lines into one shell. Returns the status of each, and all that was printed. */
  async type(lines: readonly string[]): Promise<{ statuses: number[]; text: string }> {
    const { root, env } = this.home;
    const script = lines.map((line) => `{ ${filledIn(line, root, this.mac)}\n}\necho $? >>"${root}/statuses"\n`).join(
      "",
    );
    const { LIMA_HOME: _, ...own } = env;
    const file = this.mac ? `${this.mac.daemons}/io.lima-vm.daemon.default.plist` : `${this.cwd}/FILE`;
    const here = { PATH: `${root}/typed:${own.PATH}`, DENO_DIR: denoDir(), FILE: file };
    const log = `${root}/printed`;
    const child = new Deno.Command("sh", {
      // What it starts in the background would keep a pipe open.
      args: ["-c", `exec >"${log}" 2>&1\n${script}`],
      cwd: this.cwd,
      clearEnv: true,
      env: { ...own, ...here, NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
      stdin: "null",
    }).spawn();
    const all = () => `${lines.join("\n")}\nhas not ended\n${Deno.readTextFileSync(log)}`;
    await within(child.status, LIMIT_MS, all).finally(() => killChild(child));
    const statuses = Deno.readTextFileSync(`${root}/statuses`).trim().split("\n").map(Number);
    return { statuses, text: Deno.readTextFileSync(log) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.mac?.[Symbol.asyncDispose]();
    await this.home[Symbol.asyncDispose]();
  }
}

/** The files of a folder. */
function copyFolder(from: string, to: string): void {
  Deno.mkdirSync(to, { recursive: true });
  for (const { name, isFile } of Deno.readDirSync(from)) {
    if (isFile) Deno.copyFileSync(`${from}/${name}`, `${to}/${name}`);
  }
}

function denoDir(): string {
  const { stdout } = new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).outputSync();
  return JSON.parse(new TextDecoder().decode(stdout)).denoDir;
}

/** What these answer with 1 is no failure: something needs a person, or nothing is found. */
const MAY_SAY_ONE = /(--status|--check)\b[^;&]*$|\b(grep|lsof)\b/;

async function typeAll(page: string, lines: readonly string[]): Promise<void> {
  await using world = await World.make(page, lines.join("\n"));
  const { statuses, text } = await world.type(lines);
  assert.equal(statuses.length, lines.length, text);
  for (const [i, line] of lines.entries()) {
    const isFine = statuses[i] === 0 || statuses[i] === 1 && MAY_SAY_ONE.test(line.replace(/\s+#.*/, ""));
    assert.ok(isFine, `${line}: ${statuses[i]}\n${text}`);
  }
  assert.doesNotMatch(text, /internal error|Cannot understand|not found$/m);
  const shutdowns = lines.filter((line) => /\bshutdown -/.test(line)).length;
  const called = isFound(`${world.home.root}/shutdown.called`)
    ? Deno.readTextFileSync(`${world.home.root}/shutdown.called`).trim().split("\n")
    : [];
  assert.equal(called.length, shutdowns, text);
}

const suffix = WHY_NO_MAC === undefined ? "" : ` (installs are only parsed: ${WHY_NO_MAC})`;
/** The commands of a line that can be run, where the line as a whole cannot. */
const runnable = (typed: Typed, line: string) =>
  canRun(typed, line)
    ? [line]
    : line.split(/(?:;|&&|\|\|) /).filter((part) => isOurs(simpleCommands(part)[0] ?? []) && canRun(typed, part));

for (const typed of ALL.filter(({ isBlock }) => isBlock)) {
  const lines = typed.lines.filter((line) => line.trim() !== "").flatMap((line) => runnable(typed, line));
  if (lines.length === 0) continue;
  Deno.test(`${typed.page}:${typed.line}: the lines work as they are typed${suffix}`, () => typeAll(typed.page, lines));
}

/** A line without its comment: the same command need not be run twice. */
const command = (line: string) => line.replace(/\s+#.*/, "");
const seen = new Set(ALL.filter(({ isBlock }) => isBlock).flatMap(({ lines }) => lines.map(command)));
for (const page of new Set(ALL.map((typed) => typed.page))) {
  const inline = ALL.filter((typed) => !typed.isBlock && typed.page === page);
  // `lima-guard --pre` and `deno run` alone are names.
  const isName = (line: string) => /^(lima-guard --\w+|deno \w+)$/.test(line) && !/--(help|version)/.test(line);
  const lines = new Set(inline.flatMap((typed) => typed.lines.flatMap((line) => runnable(typed, line))));
  const fresh = [...lines].filter((line) => !isName(line) && !seen.has(command(line)));
  fresh.forEach((line) => seen.add(command(line)));
  if (fresh.length > 0) {
    Deno.test(`${page}: the commands in its sentences work${suffix}`, () => typeAll(page, fresh));
  }
}

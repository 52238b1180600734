/**
 * What the stand-ins of tests/standin/launchd answer, in the process that asks: a run of install.ts asks thirty times,
 * and the tests run it a thousand times. Same log, same count of calls, same faults (Launchd.pm); who root's sudo would
 * be is only noted. What only a process can do is the stand-in's still. install_effects_test.ts holds the two ways
 * against each other.
 */

import type { Answer } from "../install.ts";

type Said = { readonly code: number; readonly stdout?: string; readonly stderr?: string };
export type Ask = (args: string[], uid: number) => Said | Promise<Said>;

export class InstallTools {
  readonly #state: string;

  /** `root`: of the pretended Mac; `ask`: its small launchd. */
  constructor(root: string, readonly ask: Ask) {
    this.#state = `${root}/state`;
  }

  /** Undefined where it takes a process. */
  async run(argv: readonly string[], uid: number): Promise<Answer | undefined> {
    if (this.#lines("fault").some((line) => /hang|late/.test(line))) return undefined;
    if (!isAnswered(argv, uid)) {
      this.#write("apart", `${this.#text("apart") ?? ""}${argv.join(" ")}\n`);
      return undefined;
    }
    const { code, stdout = "", stderr = "" } = await this.#call(argv, uid);
    return { argv, code, stdout, stderr, late: false };
  }

  async #call([program = "", ...args]: readonly string[], uid: number): Promise<Said> {
    const name = program.replace(/.*\//, "");
    const fault = this.#begin([`${uid}:`, name, ...args].join(" "));
    if (fault === "killed") return { code: -1 };
    if (/^\d+$/.test(fault)) return { code: Number(fault) };
    const said = await this.#said(name, program, args, uid);
    const [, after] = /^after:(\d+)$/.exec(fault) ?? [];
    // sudo becomes the other program, and has no end of its own.
    return after === undefined || name === "sudo" ? said : { ...said, code: Number(after) };
  }

  /** Counts and logs the call; the fault that it has. */
  #begin(line: string): string {
    const calls = Number(this.#text("calls") ?? 0) + 1;
    this.#write("calls", String(calls));
    this.#write("log", `${this.#text("log") ?? ""}${line}\n`);
    const log = this.#lines("log");
    for (const [when = "", how = ""] of this.#lines("fault").map((one) => one.split(" "))) {
      const [, word, nth] = /^(\D[^:]*):(\d+)$/.exec(when) ?? [];
      const has = (text: string) => new RegExp(`\\b${word}\\b`).test(text);
      const isMeant = word === undefined ? when === String(calls) : has(line) && log.filter(has).length === Number(nth);
      if (isMeant) return how;
    }
    return "";
  }

  #said(...[name, program, args, uid]: [string, string, string[], number]): Said | Promise<Said> {
    const file = args.at(-1) ?? "";
    const tools: Record<string, () => Said | Promise<Said>> = {
      "launchctl": () => this.ask(args, uid),
      "sysctl": () => ({ code: 0, stdout: this.#text("boot") ?? "" }),
      "id": () => this.#id(file),
      "ls": () => args[0] === "-lde" ? this.#lookAtWay(args.slice(1)) : listFolder(file),
      "codesign": () => this.#codesign(args),
      "xattr": () => ({ code: this.#lines("quarantine").includes(file) ? 0 : 1 }),
      "plutil": async () => ({ code: (await this.ask(["standin-lint", file], uid)).code === 0 ? 0 : 1 }),
      "sudo": () => this.#call(args.slice(SUDO.length), Number(args[3]!.slice(1))),
      "lima-guard": () => this.#guard(program, args, uid),
      "test": () => this.#test(args, uid),
    };
    return tools[name]!();
  }

  #id(who: string): Said {
    const fields = this.#user(who);
    if (!fields) return { code: 1, stderr: `id: ${who}: no such user\n` };
    const [name, , uid, gid] = fields;
    return { code: 0, stdout: `${name}:********:${uid}:${gid}::0:0:User:${fields.at(-2)}:/bin/zsh\n` };
  }

  #user(who: string): string[] | undefined {
    return this.#lines("users").map((line) => line.split(":")).find(([name, , uid]) => name === who || uid === who);
  }

  #lookAtWay(paths: string[]): Said {
    const acl = this.#lines("acl").map((line) => line.split("\t"));
    const missing = paths.filter((path) => !isThere(path));
    if (missing.length > 0) return { code: 1, stderr: missing.map((path) => `ls: ${path}: No such file\n`).join("") };
    const entries = (path: string) => acl.filter(([of]) => of === path).map(([, entry], i) => ` ${i}: ${entry}\n`);
    return { code: 0, stdout: paths.map((path) => [`${path}\n`, ...entries(path)].join("")).join("") };
  }

  #codesign(args: string[]): Said {
    const text = textOf(args.at(-1) ?? "");
    if (text === undefined) return { code: 1, stderr: `${args.at(-1)}: No such file or directory\n` };
    const isSigned = !/^# unsigned$/m.test(text);
    return isSigned ? { code: 0 } : { code: 1, stderr: `${args.at(-1)}: code object is not signed at all\n` };
  }

  /** The kernel decides, for that user. */
  #test(args: string[], uid: number): Said {
    const gid = this.#user(String(uid))?.[3] ?? "0";
    const test = ["/usr/bin/test", ...args];
    // By setpriv: for another uid Deno itself copies the memory of this process, which has much.
    const asUser = ["/usr/bin/setpriv", "--reuid", String(uid), "--regid", gid, "--clear-groups", ...test];
    const [program = "", ...words] = Deno.uid() === 0 ? asUser : test;
    return { code: new Deno.Command(program, { args: words }).outputSync().code };
  }

  async #guard(program: string, args: string[], uid: number): Promise<Said> {
    this.#write("guard_uids", `${this.#text("guard_uids") ?? ""}${uid}\n`);
    const own = /^# version (\S+)$/m.exec(textOf(program) ?? "")?.[1] ?? this.#text("version") ?? "";
    if (args[0] === "--version") return { code: 0, stdout: `lima-guard ${this.#conf("guard_version", own)}\n` };
    const name = args.at(-1) ?? "";
    const refused = Number(this.#conf("stop", "0"));
    let [code, state] = [refused, refused ? "unknown" : "already stopped"];
    const jobs = (await this.ask(["standin-jobs"], uid)).stdout ?? "";
    for (const [pid, owner, ...words] of jobs.split("\n").filter(Boolean).map((line) => line.split("\t"))) {
      const alive = `${this.#state}/alive/${pid}`;
      if (!isThere(alive) || !words.includes(name)) continue;
      if (code === 0 && Number(owner) !== uid) [code, state] = [77, "refused"];
      if (code !== 0 || this.#conf("agent", "1") === "0") continue;
      this.#write(`exit/${pid}`, words.includes("--run") ? "0" : "1");
      Deno.removeSync(alive);
      state = "stopped";
    }
    const blockers = code ? [{ what: "x", because: "the guard cannot tell" }] : [];
    const document = { version: 1, role: "stop", instances: [{ name, state, status: code, blockers }] };
    return { code, stdout: JSON.stringify(document) + "\n" };
  }

  #text(file: string): string | undefined {
    return textOf(`${this.#state}/${file}`);
  }

  #lines(file: string): string[] {
    return (this.#text(file) ?? "").split("\n").filter((line) => line !== "");
  }

  #conf(key: string, fallback: string): string {
    return this.#lines("conf").find((line) => line.startsWith(`${key}=`))?.slice(key.length + 1) ?? fallback;
  }

  #write(file: string, text: string): void {
    const path = `${this.#state}/${file}`;
    const isNew = !isThere(path);
    Deno.writeTextFileSync(path, text);
    if (isNew) Deno.chmodSync(path, 0o666); // a stand-in of another user adds to it
  }
}

/** How root becomes another user, before the number. */
const SUDO = ["-n", "-H", "-u", "#UID"];

function isAnswered([program = "", ...args]: readonly string[], uid: number): boolean {
  const name = program.replace(/.*\//, "");
  if (name === "codesign") return args[0] === "--verify";
  if (name === "ls") return args[0] === "-lde" || args[0] === "-A";
  if (name === "lima-guard") return (args[0] === "--version" || args[0] === "--stop") && isPlainGuard(program);
  if (name === "sudo") return uid === 0 && /^-n -H -u #\d+ \//.test(args.join(" ")) && isAnswered(args.slice(4), uid);
  return ["launchctl", "sysctl", "id", "xattr", "plutil", "test"].includes(name);
}

/** The stand-in for lima-guard, with comments at most behind its last line: what else a test has written takes a process. */
function isPlainGuard(path: string): boolean {
  const [, added] = (textOf(path) ?? "# END\n").split("# END\n", 2);
  return added !== undefined && added.split("\n").every((line) => /^\s*(#.*)?$/.test(line));
}

/** The small launchd of another process, as launchctl's stand-in reaches it. */
export function launchdAt(path: string): Ask {
  return async (args, uid) => {
    using conn = await Deno.connect({ transport: "unix", path });
    await conn.write(new TextEncoder().encode([uid, ...args].join("\0") + "\n\0\n"));
    const [code = "", stdout = "", stderr = ""] = (await new Response(conn.readable).text()).split("\0");
    return { code: Number(code), stdout, stderr };
  };
}

function textOf(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined; // no file, or none that this user may read
  }
}

function isThere(path: string): boolean {
  try {
    return Deno.lstatSync(path) !== undefined;
  } catch {
    return false;
  }
}

function listFolder(folder: string): Said {
  if (!isThere(folder)) return { code: 1, stderr: `ls: ${folder}: No such file or directory\n` };
  return { code: 0, stdout: [...Deno.readDirSync(folder)].map(({ name }) => `${name}\n`).sort().join("") };
}

/**
 * What the stand-ins of tests/standin/launchd answer, in the process that asks: a run of install.ts asks thirty times,
 * and a trial of every effect runs it hundreds of times. Same log, same count of calls, same faults (Launchd.pm), but
 * `hang` and `late`; who root's sudo would be is only noted. install_effects_test.ts holds both against each other.
 */

import type { Answer } from "../install.ts";

type Said = { readonly code: number; readonly stdout?: string; readonly stderr?: string };
export type Ask = (args: string[], uid: number) => Said | Promise<Said>;

export class InstallTools {
  readonly #state: string;

  /** `root`: of the pretended Mac; `ask`: its small launchd. */
  constructor(readonly root: string, readonly ask: Ask) {
    this.#state = `${root}/state`;
  }

  async run(argv: readonly string[], uid: number): Promise<Answer> {
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
      if (isMeant && /^(hang|late)$/.test(how)) throw new Error(`${how}: only a process can`);
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
      "sudo": () => this.#sudo(args, uid),
      "lima-guard": () => this.#guard(program, args, uid),
    };
    const tool = tools[name];
    if (!tool) throw new Error(`${name}: only a process can`);
    return tool();
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
    if (args[0] !== "--verify") throw new Error("codesign to sign: only a process can");
    const text = textOf(args.at(-1) ?? "");
    if (text === undefined) return { code: 1, stderr: `${args.at(-1)}: No such file or directory\n` };
    const isSigned = !/^# unsigned$/m.test(text);
    return isSigned ? { code: 0 } : { code: 1, stderr: `${args.at(-1)}: code object is not signed at all\n` };
  }

  /** Root's: `-n -H -u #UID COMMAND…`. */
  #sudo(args: string[], uid: number): Promise<Said> {
    const [, who] = /^-n -H -u #(\d+) \//.exec(args.join(" ")) ?? [];
    if (uid !== 0 || who === undefined) throw new Error(`sudo ${args.join(" ")}: only a process can`);
    return this.#call(args.slice(4), Number(who));
  }

  async #guard(program: string, args: string[], uid: number): Promise<Said> {
    this.#write("guard_uids", `${this.#text("guard_uids") ?? ""}${uid}\n`);
    const own = /^# version (\S+)$/m.exec(textOf(program) ?? "")?.[1] ?? this.#text("version") ?? "";
    if (args[0] === "--version") return { code: 0, stdout: `lima-guard ${own}\n` };
    const name = args.at(-1);
    if (args[0] !== "--stop" || name === undefined) throw new Error(`${args.join(" ")}: only a process can`);
    let [code, state] = [0, "already stopped"];
    const jobs = (await this.ask(["standin-jobs"], uid)).stdout ?? "";
    for (const [pid, owner, ...words] of jobs.split("\n").filter(Boolean).map((line) => line.split("\t"))) {
      const alive = `${this.#state}/alive/${pid}`;
      if (!isThere(alive) || !words.includes(name)) continue;
      if (code === 0 && Number(owner) !== uid) [code, state] = [77, "refused"];
      if (code !== 0) continue;
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

  #write(file: string, text: string): void {
    Deno.writeTextFileSync(`${this.#state}/${file}`, text);
  }
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

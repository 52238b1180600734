/**
 * What only a Mac can answer: how launchd, ps, plutil and codesign behave where no manual says it, asked one by one with
 * throw-away jobs. Each answer is printed, added to $GITHUB_STEP_SUMMARY and, as a line of JSON, to $LIMA_GUARD_ANSWERS as
 * it comes; a question has 60 s. A test fails only where lima-guard cannot live with the answer.
 *
 *   deno task test tests/mac/questions_test.ts
 *
 * Daemons are asked about where `sudo -n` works, with `UserName`. What takes a reboot is asked in three steps:
 *   LIMA_GUARD_PROBE=arm deno task test tests/mac/questions_test.ts       leaves jobs that write down their end
 *   … reboot the Mac …
 *   deno task test tests/mac/questions_test.ts                            reads what they wrote
 *   LIMA_GUARD_PROBE=disarm deno task test tests/mac/questions_test.ts    takes them away
 * LIMA_GUARD_SHARE=FOLDER is a folder on a share, for the question about sync and locks there.
 * LIMA_GUARD_VICTIM=NAME is a running vz instance whose host agent may be killed, which cuts its guest off.
 */

import assert from "node:assert/strict";
import { PS_COLUMNS, readPrint, readPs } from "../../lima_guard.ts";
import { eventually, isAlive } from "../helpers/processes.ts";
import { answerTo, beginPaper, NoAnswer, type Paper, writeAnswer } from "./answers.ts";
import { type Domain, Job, line, plistText, say, sweepQuestions, textOf, type Value } from "./launchd.ts";
import { arm, disarm, readArmed } from "./probe.ts";
import { askReach } from "./reach.ts";
import { takeCores, type Timed, timesOf } from "./timing.ts";
import { askVolume } from "./volume.ts";

const ON_MAC = Deno.build.os === "darwin";
const HOME = Deno.env.get("HOME") ?? "/";

interface Scene {
  /** A folder of its own, gone afterwards. */
  readonly dir: string;
  /** A job that runs this script with sh; "$1" is the folder. */
  script(
    text: string,
    keys?: { readonly [key: string]: Value },
    domain?: Domain,
    more?: readonly string[],
  ): Promise<Job>;
}

const paper: Paper = {
  summary: Deno.env.get("GITHUB_STEP_SUMMARY"),
  jsonl: Deno.env.get("LIMA_GUARD_ANSWERS"),
  print: (text) => void Deno.stdout.writeSync(new TextEncoder().encode(text)),
};
if (ON_MAC) {
  const fact = async (...argv: string[]) => line((await say(argv)).text);
  beginPaper(paper, {
    system: await fact("sw_vers"),
    machine: await fact("uname", "-m"),
    protection: await fact("csrutil", "status"),
    gatekeeper: await fact("spctl", "--status"),
    filevault: await fact("fdesetup", "status"),
    session: await fact("launchctl", "managername"),
    virtualises: await fact("/usr/sbin/sysctl", "-n", "kern.hv_support"),
    inside: await fact("/usr/sbin/sysctl", "-n", "kern.hv_vmm_present"),
  });
}

/** Asks one thing, for 60 s at most. */
function ask(question: string, answer: (scene: Scene) => Promise<string | NoAnswer>): void {
  Deno.test({
    name: ON_MAC ? question : `${question}: needs a Mac`,
    ignore: !ON_MAC,
    sanitizeOps: false,
    sanitizeResources: false,
    async fn() {
      const dir = await Deno.realPath(await Deno.makeTempDir({ dir: "/tmp", prefix: "lgq" }));
      const script: Scene["script"] = async (text, keys = {}, domain = "agent", more = []) => {
        await Deno.writeTextFile(`${dir}/job.sh`, text);
        const user = domain === "daemon" ? { UserName: USER } : {};
        const ProgramArguments = ["/bin/sh", `${dir}/job.sh`, dir, ...more];
        return await Job.load(dir, domain, { ...user, ProgramArguments, ...keys });
      };
      // A ticket of sudo is good for 5 minutes, and many questions need none.
      if (canSudo) await say(["sudo", "-n", "true"]);
      const row = await answerTo(question, () => answer({ dir, script }));
      writeAnswer(paper, row);
      await Deno.remove(dir, { recursive: true }).catch(() => say(["sudo", "-n", "rm", "-rf", dir]));
      if (row.error instanceof assert.AssertionError) throw row.error;
    },
  });
}

const FOREVER = "while :; do sleep 0.2; done\n";
const USER = ON_MAC ? (await say(["id", "-un"])).text : "";
const canSudo = ON_MAC && (await say(["sudo", "-n", "true"])).code === 0;
const domains: readonly Domain[] = canSudo ? ["agent", "daemon"] : ["agent"];
if (ON_MAC) await sweepQuestions(domains);

// ── launchd ──

ask("1: what becomes of an ExitTimeOut, for agents and for daemons?", async ({ script }) => {
  const found: string[] = [];
  for (const domain of domains) {
    for (const seconds of [0, 5, 60, 61, 120, 300]) {
      const keys = seconds === 0 ? {} : { ExitTimeOut: seconds };
      await using job = await script(FOREVER, keys, domain);
      await job.pid();
      found.push(`${domain} ${seconds || "none"} → ${await job.value("exit timeout")}`);
    }
  }
  const most = /maximum allowed shutdown time = .*/.exec((await say(["launchctl", "print", "system"])).text)?.[0];
  return `${found.join(", ")}; ${most ?? "no maximum is shown"}${canSudo ? "" : "; daemons: no sudo"}`;
});

ask(
  "4: the main process is killed: does its group get SIGTERM, and does a child that ignores it live on?",
  async (s) => {
    const child =
      `(trap 'echo TERM >>"$1/got"' TERM; echo ready >>"$1/got"; ${FOREVER.trim()}) &\necho $! >"$1/child"\nwait\n`;
    await using job = await s.script(child);
    await textOf(`${s.dir}/got`, /ready/);
    const pid = Number(await textOf(`${s.dir}/child`));
    Deno.kill(await job.pid(), "SIGKILL");
    const got = await textOf(`${s.dir}/got`, /TERM/, 8_000).then(() => "SIGTERM", () => "no SIGTERM in 8 s");
    const lives = await eventually(() => assert.equal(isAlive(pid), false), { withinMs: 12_000 }).then(
      () => "ended",
      () => "alive 12 s later",
    );
    if (isAlive(pid)) Deno.kill(pid, "SIGKILL");
    return `${got}; the child: ${lives}`;
  },
);

ask("5: which XPC_SERVICE_NAME has a program that Deno starts in a job?", async ({ dir }) => {
  const code = `new Deno.Command("/usr/bin/env").output().then((o) => Deno.writeFileSync("${dir}/env", o.stdout))`;
  await using job = await Job.load(dir, "agent", { ProgramArguments: [Deno.execPath(), "eval", code] });
  const name = /^XPC_SERVICE_NAME=(.*)$/m.exec(await textOf(`${dir}/env`))?.[1];
  return `${name === job.label ? "the label" : name ?? "none"} (lima-guard sets it itself)`;
});

ask("6: which environment has a daemon with UserName?", async ({ dir }) => {
  if (!canSudo) return new NoAnswer("not asked", "sudo -n does not work here");
  const keys = { UserName: USER, ProgramArguments: ["/usr/bin/env"], StandardOutPath: `${dir}/env` };
  await using _job = await Job.load(dir, "daemon", keys);
  const lines = (await textOf(`${dir}/env`, /PATH=/)).split("\n");
  return lines.filter((l) => /^(HOME|USER|LOGNAME|SHELL|TMPDIR|PATH)=/.test(l)).join(" ");
});

ask("11: what does kickstart -k send, and how long does it wait?", async ({ dir, script }) => {
  const text = `trap 'echo TERM >>"$1/got"' TERM\necho start >>"$1/got"\n${FOREVER}`;
  await using job = await script(text, { ExitTimeOut: 20 });
  await textOf(`${dir}/got`, /start/);
  const old = await job.pid();
  const began = performance.now();
  await job.launchctl("kickstart", "-k", job.target);
  await eventually(() => assert.equal(isAlive(old), false), { withinMs: 40_000 });
  const got = await Deno.readTextFile(`${dir}/got`);
  return `${got.includes("TERM") ? "SIGTERM, then " : "at once "}SIGKILL; gone after ${seconds(began)} s of 20`;
});

ask("13: does bootout --wait return when the label is gone?", async ({ script }) => {
  const found: string[] = [];
  for (const domain of domains) {
    await using job = await script(`trap 'sleep 3; exit 0' TERM\n${FOREVER}`, { ExitTimeOut: 20 }, domain);
    await job.pid();
    const began = performance.now();
    const { code, text } = await job.launchctl("bootout", "--wait", job.target);
    const after = (await say(["launchctl", "print", job.target])).code;
    found.push(`${domain}: status ${code} after ${seconds(began)} s, then print ${after} ${line(text)}`);
  }
  return found.join("; ");
});

ask("bootout: is the label gone when it returns, and what says bootstrap until then?", async ({ dir, script }) => {
  await using job = await script(`trap 'sleep 3; exit 0' TERM\n${FOREVER}`, { ExitTimeOut: 20 });
  await job.pid();
  const began = performance.now();
  const { code } = await job.launchctl("bootout", job.target);
  const there = await job.value("state");
  const again = await job.launchctl("bootstrap", job.target.replace(`/${job.label}`, ""), `${dir}/${job.label}.plist`);
  return `bootout ${code} after ${seconds(began)} s, then state ${there ?? "113"}; bootstrap ${again.code}`;
});

ask("a child of root in a login session: which way to become the user gets through?", async ({ script, dir }) => {
  if (!canSudo) return new NoAnswer("not asked", "sudo -n does not work here");
  await using job = await script(FOREVER);
  await job.pid();
  const account = { uid: Deno.uid() ?? 0, groups: (await say(["id", "-G"])).text };
  const asRoot = (...argv: string[]) => say(["sudo", "-n", ...argv]);
  return await askReach(asRoot, { account, target: job.target, plist: `${dir}/${job.label}.plist` });
});

ask("launchctl print: does lima-guard read it?", async ({ script }) => {
  for (const domain of domains) {
    await using job = await script(FOREVER, { ExitTimeOut: 42 }, domain);
    const pid = await job.pid();
    const { text } = await say(["launchctl", "print", job.target]);
    const printed = readPrint(text);
    assert.deepEqual([printed.pid, printed.exitTimeoutS], [pid, 42], text);
  }
  return `yes: pid and exit timeout (${domains.join(", ")})`;
});

ask("what says launchd of a quarantined program?", async (scene) => {
  const answer = await quarantined(scene);
  const gatekeeper = line((await say(["spctl", "--status"])).text);
  return gatekeeper.includes("enabled") ? answer : new NoAnswer("not telling", `${answer} (${gatekeeper})`);
});

async function quarantined({ dir }: Scene): Promise<string> {
  const copy = `${dir}/quarantined`;
  await Deno.copyFile(Deno.execPath(), copy);
  await Deno.chmod(copy, 0o755);
  await say(["xattr", "-w", "com.apple.quarantine", "0081;00000000;lima-guard;", copy]);
  const keys = { ProgramArguments: [copy, "eval", `Deno.writeTextFileSync("${dir}/ran", "ran")`] };
  try {
    await using job = await Job.load(dir, "agent", keys);
    const ran = await textOf(`${dir}/ran`, /ran/, 8_000).catch(() => undefined);
    return ran ??
      `not started in 8 s: ${await job.value("state")}, last exit code ${await job.value("last exit code")}`;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return `refused: ${line(error.message)}`;
  }
}

ask("a log in a folder that is not there: is the folder made, and which user owns it?", async ({ dir, script }) => {
  const found: string[] = [];
  for (const domain of domains) {
    const folder = `${dir}/${domain}/logs`;
    await using job = await script(FOREVER, { StandardOutPath: `${folder}/out` }, domain);
    const state = await eventually(async () => {
      const seen = await job.value("state");
      assert.ok(seen === "running" || await job.value("last exit code") !== "(never exited)", seen);
      return seen;
    }, { withinMs: 8_000 }).catch(() => "no state in 8 s");
    const owner = await Deno.stat(folder).then((s) => `made by uid ${s.uid}`, () => "not made");
    found.push(`${domain}: ${owner}, ${state}, last exit code ${await job.value("last exit code")}`);
  }
  return found.join("; ");
});

ask("10: what does a throw-away job add to the background items?", async ({ script }) => {
  if (!canSudo) return new NoAnswer("for a person", "sudo -n does not work here: look for a notice at the screen");
  const items = async () => (await say(["sudo", "-n", "sfltool", "dumpbtm"])).text.split("\n").map((l) => l.trim());
  const before = await items();
  const more = async () => {
    const now = await items();
    return line(now.filter((l) => !before.includes(l)).join(" ")) || "nothing";
  };
  const job = await script(FOREVER);
  const during = await job.pid().then(more).finally(() => job[Symbol.asyncDispose]());
  return `while loaded: ${during}; afterwards: ${await more()}; a person: was there a notice?`;
});

/** What a job of each domain says of a file that is in a place for which macOS asks a person. */
async function consentFor({ script, dir }: Scene, file: string): Promise<string> {
  await Deno.writeTextFile(file, "x");
  const found: string[] = [];
  for (const domain of domains) {
    // What the second user of a folder is denied is not a question of consent: the job is this user's in both domains.
    const text = `/usr/bin/stat -f %z "$2" >"$1/said" 2>&1; echo "stat $?" >>"$1/said"\n` +
      `cat "$2" >>"$1/said" 2>&1; echo "open $?" >>"$1/said"\n${FOREVER}`;
    await using _job = await script(text, {}, domain, [file]);
    const said = await textOf(`${dir}/said`, /^open \d/m).catch(() => "no answer: the file operation hangs");
    found.push(`${domain}: ${line(said)}`);
    await say(["rm", "-f", `${dir}/said`]);
  }
  return found.join("; ");
}

/** The lines of the log in which macOS decides about sh; how many there are, and the last ones. */
async function decisions(): Promise<string> {
  const predicate = 'process == "tccd" && (eventMessage CONTAINS "AUTHREQ_RESULT" || eventMessage CONTAINS "DENIED")';
  const { code, text } = await say([
    "/usr/bin/log",
    "show",
    "--last",
    "2m",
    "--style",
    "compact",
    "--predicate",
    predicate,
  ]);
  if (code !== 0) return `log show: status ${code}: ${line(text)}`;
  const rows = text.split("\n").filter((row) => row.includes("tccd"));
  return `${rows.length} lines of tccd: ${line(rows.slice(-3).join(" ")) || "none"}`;
}

ask("consent: can a job open a file below ~/Documents, in both domains?", async (scene) => {
  const file = `${HOME}/Documents/lima-guard-question.${Deno.pid}`;
  try {
    return `${await consentFor(scene, file)}; ${await decisions()}`;
  } finally {
    await Deno.remove(file).catch(() => {});
  }
});

ask("consent: can a job open a file on a disk image below /Volumes, in both domains?", async (scene) => {
  const [image, volume] = [`${scene.dir}/consent.dmg`, `/Volumes/lgq${Deno.pid}`];
  const size = ["-size", "8m", "-fs", "HFS+", "-volname", `lgq${Deno.pid}`];
  const made = await say(["/usr/bin/hdiutil", "create", ...size, image]);
  const attached = await say(["/usr/bin/hdiutil", "attach", "-nobrowse", "-mountpoint", volume, image]);
  if (attached.code !== 0) return new NoAnswer("not asked", line(`${made.text} ${attached.text}`));
  try {
    return `${await consentFor(scene, `${volume}/x`)}; ${await decisions()}`;
  } finally {
    await say(["/usr/bin/hdiutil", "detach", "-force", volume]);
  }
});

const MEASURED_TIMES = 20;
const MOST_S = 5;

/** A job that times what lima-guard does at a stop; `time` is a word of the Mac's /bin/sh. */
const MEASURE = `cd "$1"; n=0; while [ $n -lt ${MEASURED_TIMES} ]; do n=$((n + 1))
{ time -p /bin/ps -A >/dev/null; } 2>&1 | sed -n 's/^real/ps/p' >>times
{ time -p /bin/launchctl print system >/dev/null; } 2>&1 | sed -n 's/^real/print/p' >>times
{ time -p /usr/bin/ssh -V 2>/dev/null; } 2>&1 | sed -n 's/^real/ssh/p' >>times
{ time -p /bin/sh -c 'echo x >>note; sync'; } 2>&1 | sed -n 's/^real/sync/p' >>times
done; echo done >>times
${FOREVER}`;

async function measured({ script, dir }: Scene, type: string | undefined, withinMs: number): Promise<Timed> {
  await using _job = await script(MEASURE, type === undefined ? {} : { ProcessType: type }, domains.at(-1) ?? "agent");
  await textOf(`${dir}/times`, /done/, withinMs).catch(() => {});
  const timed = timesOf(await Deno.readTextFile(`${dir}/times`).catch(() => ""));
  await say(["sudo", "-n", "rm", "-f", `${dir}/times`, `${dir}/note`]);
  await say(["rm", "-f", `${dir}/times`, `${dir}/note`]);
  return timed;
}

ask(
  "ProcessType Background: how slow are ps, print, ssh and a synced line, with nothing else to do?",
  async (scene) => {
    const found: string[] = [];
    for (const type of [undefined, "Standard", "Background"]) {
      const { text } = await measured(scene, type, 15_000);
      found.push(`${type ?? "none"}: ${text}`);
    }
    return found.join("; ");
  },
);

ask("ProcessType Background: the same with all cores and 3 GB taken?", async (scene) => {
  const found: string[] = [];
  for (const type of [undefined, "Background"]) {
    using _load = takeCores(3 * 1024 ** 3);
    const { text, worst } = await measured(scene, type, 25_000);
    found.push(`${type ?? "none"}: ${text}`);
    assert.ok(worst <= MOST_S, `over ${MOST_S} s, the limits of lima-guard are too small: ${found.join("; ")}`);
  }
  return found.join("; ");
});

ask("how many files may a job open?", async ({ script, dir }) => {
  const found = [line((await say(["launchctl", "limit", "maxfiles"])).text)];
  for (const domain of domains) {
    await using _job = await script(`ulimit -n >"$1/${domain}"; ulimit -Hn >>"$1/${domain}"\n${FOREVER}`, {}, domain);
    found.push(`${domain}: ${line(await textOf(`${dir}/${domain}`, /\S+\s+\S/))}`);
  }
  return found.join("; ");
});

ask(
  "sync and locks: do they work, and how long does a synced line take, on APFS and on a disk image?",
  async (scene) => {
    const { dir } = scene;
    const found = [`APFS: ${await askVolume(dir)}`];
    await say(["hdiutil", "create", "-size", "8m", "-fs", "HFS+", "-volname", "lgq", `${dir}/image.dmg`]);
    await Deno.mkdir(`${dir}/image`);
    const attached = await say(["hdiutil", "attach", "-nobrowse", "-mountpoint", `${dir}/image`, `${dir}/image.dmg`]);
    try {
      found.push(`disk image: ${attached.code === 0 ? await askVolume(`${dir}/image`) : line(attached.text)}`);
    } finally {
      await say(["hdiutil", "detach", "-force", `${dir}/image`]);
    }
    return found.join("; ");
  },
);

ask("sync and locks: the same on a share, over SMB?", async () => {
  const folder = Deno.env.get("LIMA_GUARD_SHARE");
  if (!folder) return new NoAnswer("not asked", "LIMA_GUARD_SHARE names no folder on a share; see tests/mac/share");
  const mounts = (await say(["mount"])).text.split("\n").filter((row) => / \((smbfs|nfs|afpfs|macfuse)/.test(row));
  return `${await askVolume(folder)}; mounted: ${line(mounts.join(" ")) || "no share"}`;
});

// ── tools ──

ask("12: does plutil sort keys, and does -replace of a place in an array replace or insert?", async ({ dir }) => {
  const file = `${dir}/x.plist`;
  await Deno.writeTextFile(file, plistText({ b: "1", a: ["x", "y"], "c.d": "2" }));
  const xml = (await say(["plutil", "-convert", "xml1", "-o", "-", file])).text;
  await say(["plutil", "-replace", "a.0", "-string", "z", file]);
  const array = (await say(["plutil", "-extract", "a", "json", "-o", "-", file])).text;
  const dotted = await say(["plutil", "-extract", "c\\.d", "raw", "-o", "-", file]);
  const order = xml.indexOf("<key>a") < xml.indexOf("<key>b") ? "sorted" : "as they were";
  return `keys ${order}; a.0 → ${line(array)}; "c\\.d" ${dotted.code === 0 ? "is" : "is not"} found`;
});

ask("ps: does lima-guard read it, and the letters of a path beyond ASCII?", async ({ dir }) => {
  await Deno.writeTextFile(`${dir}/zoë's lima.sh`, FOREVER);
  const child = new Deno.Command("/bin/sh", { args: [`${dir}/zoë's lima.sh`], stdin: "null" }).spawn();
  try {
    const env = { TZ: "UTC0", LC_TIME: "C", LC_CTYPE: "UTF-8", LC_ALL: "", LANG: "" };
    const { text } = await say(["/bin/ps", "-p", String(child.pid), "-ww", "-o", PS_COLUMNS], env);
    const { rows, unreadable } = readPs(`${text}\n`);
    assert.deepEqual([rows.length, unreadable.length], [1, 0], text);
    // ps is setuid: does it honour TZ all the same?
    const started = Date.parse(`${rows[0]?.started.replaceAll(/ +/g, " ")} UTC`);
    assert.ok(Math.abs(started - Date.now()) < 60_000, `the start is not in UTC: ${text}`);
    return `read; ${rows[0]?.command.includes("zoë's") ? "as they are" : `as ${line(rows[0]?.command ?? "")}`}`;
  } finally {
    child.kill("SIGKILL");
    await child.status;
  }
});

ask("is a path given back in the spelling of the disk?", async ({ dir }) => {
  await Deno.mkdir(`${dir}/Zoë`);
  const same = async (name: string) => await Deno.realPath(`${dir}/${name}`).catch(() => "no such folder");
  const inode = async (name: string) => (await Deno.stat(`${dir}/${name}`).catch(() => undefined))?.ino;
  const [lower, apart] = ["zoë", "Zoë".normalize("NFD")];
  const ok = await inode(lower) === undefined || await inode(lower) === await inode("Zoë");
  assert.ok(ok, "two spellings of one folder have different inodes");
  return `lower case → ${line(await same(lower))}; é in two parts → ${line(await same(apart))}; one inode`;
});

ask("codesign: can it sign without the command line tools?", async ({ dir }) => {
  await Deno.copyFile(Deno.execPath(), `${dir}/copy`);
  const tools = await say(["xcode-select", "-p"]);
  const signed = await say(["codesign", "--force", "--sign", "-", `${dir}/copy`]);
  const verified = await say(["codesign", "--verify", `${dir}/copy`]);
  return `tools: ${line(tools.text)}; sign ${signed.code}: ${line(signed.text)}; verify ${verified.code}`;
});

ask("is there a mark of the boot that a clock cannot move?", async () => {
  const { code, text } = await say(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]);
  assert.match(text, /^[0-9A-F-]{36}$/);
  return `kern.bootsessionuuid, status ${code}`;
});

ask("locks: does flock keep a second process out?", async ({ dir }) => {
  using file = await Deno.open(`${dir}/lock`, { create: true, write: true });
  assert.equal(file.tryLockSync(true), true);
  const code = `Deno.exit(Deno.openSync("${dir}/lock", { write: true }).tryLockSync(true) ? 1 : 0)`;
  assert.equal((await say([Deno.execPath(), "eval", code])).code, 0, "both have the lock");
  return "yes";
});

// ── with a virtual machine, a reboot, or a person ──

ask("9: the host agent is killed: who has the disk open, second by second?", async () => {
  const name = Deno.env.get("LIMA_GUARD_VICTIM");
  if (!name) return new NoAnswer("not asked", "LIMA_GUARD_VICTIM names no running vz instance; see tests/mac/vz");
  const dir = `${Deno.env.get("LIMA_HOME") ?? `${HOME}/.lima`}/${name}`;
  const pid = Number((await Deno.readTextFile(`${dir}/ha.pid`)).trim());
  assert.ok(pid > 1 && isAlive(pid), `${name} does not run`);
  // `disk` since Lima 2.1, `diffdisk` before.
  const holders = async () => {
    const argv = ["/usr/sbin/lsof", "-n", "-P", "-w", "-F", "pcan", "--", `${dir}/disk`, `${dir}/diffdisk`];
    return (await say(argv)).text.split("\n").filter((l) => /^[pca]/.test(l)).join(" ");
  };
  const found = [`before: ${await holders()}`];
  Deno.kill(pid, "SIGKILL");
  const began = performance.now();
  for (let last = found[0]; performance.now() - began < 50_000;) {
    const now = await holders();
    if (now !== last) found.push(`${seconds(began)} s: ${now || "none"}`);
    if (now === "") break;
    last = now;
  }
  return found.join("; ");
});

ask("2, 3, 7, 14: a shutdown: signals, time, ssh, directory, AlwaysSIGTERMOnShutdown?", async () => {
  const wish = Deno.env.get("LIMA_GUARD_PROBE");
  if (wish === "arm") return await arm(canSudo);
  if (wish === "disarm") return await disarm(canSudo);
  return await readArmed() ?? new NoAnswer("for a person", "LIMA_GUARD_PROBE=arm, reboot, ask again");
});

const FOR_PEOPLE = [
  [
    "8: does the process of a VM get a SIGTERM of its own at a shutdown, and does the ready ssh session still carry the word?",
    "tests/mac/reboot, see docs/first-mac-run.md: the same reboot without lima-guard and with it",
  ],
  [
    "consent for other volumes, before and after wrapping?",
    "an instance on another volume with Full Disk Access for limactl; `lima-guard --install`; `log show --last 5m --predicate 'process == \"tccd\"'`",
  ],
  [
    "consent for the local network, before and after wrapping?",
    "an agent on macOS 15 or later; `limactl shell NAME ping -c 1 ROUTER` before and after",
  ],
  [
    "does the first start wait for FileVault, and does authrestart help?",
    "`sudo fdesetup authrestart`; `lima-guard --status`",
  ],
] as const;
for (const [question, how] of FOR_PEOPLE) {
  ask(question, () => Promise.resolve(new NoAnswer("for a person", how)));
}

function seconds(began: number): string {
  return ((performance.now() - began) / 1000).toFixed(1);
}

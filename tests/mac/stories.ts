/** What is done with one throw-away job: on a Mac with its own launchd, elsewhere with the stand-in. */

import assert from "node:assert/strict";
import { eventually, isAlive } from "../helpers/processes.ts";
import { type Ground, note, type OtherBuild } from "./ground.ts";
import type { Domain } from "./launchd.ts";
import { disabledLabels, leftovers, Live, sweep, timed } from "./live.ts";

export interface Story {
  readonly name: string;
  readonly domains: readonly Domain[];
  tell(ground: Ground, domain: Domain): Promise<void>;
}

const BOTH: readonly Domain[] = ["agent", "daemon"];
const inOneLine = (text: string) => text.replaceAll(/\s+/g, " ").trim().slice(0, 600);

/** The modes and owners of what root has made; of the user's where it is an agent. */
function assertClosed(live: Live): void {
  const owner = live.options.domain === "daemon" ? 0 : live.ground.user.uid;
  for (const path of [live.plist, `${live.plist}.before-lima-guard`, live.guardDir, `${live.guardDir}/lima-guard`]) {
    const { uid, mode } = Deno.statSync(path);
    assert.deepEqual([uid, (mode ?? 0) & 0o022], [owner, 0], `${path}: owner and who else may write`);
  }
}

async function isBack(live: Live): Promise<void> {
  assert.equal(Deno.readTextFileSync(live.plist), live.text);
  assert.ok(!(await live.print()).text.includes("--run"));
}

async function stopped(live: Live, by = live.ground.guard): Promise<void> {
  const { domain, owner = "user" } = live.options;
  const agent = await live.agent();
  await timed(`${domain}: --stop`, () => live.well("stop", { as: owner, by }));
  note(`${domain}: stages of --stop: ${await live.stages()}`);
  assert.equal(isAlive(agent), false);
  await live.idle();
}

/** The lima-guard of the job dies: the next start clears what it left. */
async function crashed(live: Live): Promise<void> {
  await live.asKeeper("launchctl", "kickstart", live.target);
  await live.agent();
  await live.asKeeper("kill", "-9", String(await live.pid()));
  await live.idle();
  const left = await Deno.readTextFile(`${live.made.dir}/ha.pid`).then(Number, () => 0);
  if (left > 1) await eventually(() => assert.equal(isAlive(left), false), { withinMs: 30_000 });
  await live.asKeeper("launchctl", "kickstart", live.target);
  await live.agent();
}

/** Out, with a guest that takes longer than launchd's own 5 s, and in again. */
async function outAndIn(live: Live): Promise<void> {
  const { ground, options: { domain, owner = "user" } } = live;
  await live.pid();
  live.linger(ground.lingerS);
  await timed(`${domain}: from bootout to gone, with a guest of ${ground.lingerS} s`, async () => {
    await live.asKeeper("launchctl", "bootout", live.target);
    await live.gone();
  });
  live.linger(1);
  await assert.rejects(Deno.stat(`${live.made.dir}/ha.pid`), Deno.errors.NotFound, "the guest was cut off");
  note(`${domain}: stages after bootout: ${await live.stages()}`);
  const { code, text } = await live.guard("status", { as: owner });
  note(`${domain}: status after bootout ${code}: ${inOneLine(text)}`);
  await live.load();
  await live.agent();
}

/** What macOS lists as background items; undefined where it does not say so. */
async function backgroundItems(ground: Ground): Promise<string[] | undefined> {
  const { code, text } = await ground.run(["sfltool", "dumpbtm"], { as: "root" });
  return code === 0 ? text.split("\n").map((row) => row.trim()) : undefined;
}

async function noteItems(live: Live, when: string, before: readonly string[] | undefined): Promise<void> {
  const now = before && await backgroundItems(live.ground);
  const more = now?.filter((row) => !before?.includes(row)).join(" ");
  const words = more === undefined ? "cannot be listed" : inOneLine(more) || "none more than before";
  note(`${live.options.domain}: background items ${when}: ${words}`);
}

/** As often as the ground wants it: the second time finds what the first has left in launchd's memory. */
async function wholeAgain(ground: Ground, domain: Domain): Promise<void> {
  for (let round = 1; round <= ground.rounds; round++) {
    note(`${domain}: round ${round} of ${ground.rounds}`);
    await whole(ground, domain);
  }
}

async function whole(ground: Ground, domain: Domain): Promise<void> {
  const items = await backgroundItems(ground);
  await using live = await Live.make(ground, { domain });
  await live.load();
  await live.agent();
  await timed(`${domain}: install`, () => live.well("install"));
  await noteItems(live, "after --install", items);
  const { text: print } = await live.print();
  const { exitTimeoutS, pid } = await live.printed();
  assert.equal(exitTimeoutS, 60, print);
  assert.ok(print.includes(`\t\t${live.guardDir}/lima-guard\n\t\t--run\n\t\t${live.name}\n`), print);
  assertClosed(live);
  await live.well("check");
  await live.well("again");
  assert.equal((await live.printed()).pid, pid, "it was restarted");
  await stopped(live);
  await crashed(live);
  await outAndIn(live);
  await live.well("uninstall");
  await isBack(live);
  await noteItems(live, "after --uninstall", items);
}

/** Its limactl is a process without a host agent: `--stop` has nothing to end. */
async function bare(ground: Ground, domain: Domain): Promise<void> {
  await using live = await Live.make(ground, { domain, isBare: true });
  await live.load();
  await live.pid();
  await timed(`${domain}, without a host agent: install`, () => live.well("install"));
  const checked = await live.guard("check");
  note(`${domain}, without a host agent: check ${checked.code}: ${inOneLine(checked.text)}`);
  await live.well("uninstall");
  await isBack(live);
}

/** What launchd makes of more than 60 s, and what lima-guard says then. */
async function limits(ground: Ground, domain: Domain): Promise<void> {
  await using live = await Live.make(ground, { domain });
  await live.load();
  await live.agent();
  for (const [what, wanted] of [["twoMinutes", 120], ["fiveMinutes", 300]] as const) {
    const said = await live.guard(what);
    const { exitTimeoutS } = await live.printed();
    const checked = await live.guard("check");
    note(
      `${domain}: ExitTimeOut ${wanted} → ${exitTimeoutS}; install ${said.code}, check ${checked.code}: ${
        inOneLine(checked.text)
      }`,
    );
    assert.equal(said.code, 0, said.text);
    assert.equal(exitTimeoutS, ground.granted(domain, wanted) ?? exitTimeoutS);
    assert.ok(exitTimeoutS !== undefined && exitTimeoutS >= 60, `no time for a stop: ${exitTimeoutS}`);
  }
  await live.well("uninstall");
  await isBack(live);
}

/** A build that cannot stop the instance goes out again, byte by byte; a newer one comes in by --restart. */
async function upgrade(ground: Ground, domain: Domain): Promise<void> {
  await using live = await Live.make(ground, { domain });
  await live.load();
  await live.agent();
  await live.well("install");
  const pid = await live.pid();
  const files = () => [Deno.readFileSync(`${live.guardDir}/lima-guard`), Deno.readFileSync(live.plist)];
  const before = files();
  const tried = async (build: OtherBuild, what: string) => {
    const by = await ground.build(build);
    const said = await timed(`${domain}: ${what}`, () => live.guard("restart", { by }));
    note(`${domain}: ${what}: status ${said.code}: ${inOneLine(said.text)}`);
    return said;
  };
  const mute = await tried("mute", "a build whose --stop fails");
  assert.equal(mute.code, 1, mute.text);
  assert.deepEqual(files(), before);
  assert.deepEqual([await live.pid(), isAlive(pid)], [pid, true], "the old one runs on");
  await live.well("check");

  // Its job runs for a moment, again and again.
  const dead = await tried("dead", "a build whose --run ends at once");
  assert.notEqual(dead.code, 0, dead.text);
  assert.deepEqual(files(), before);

  const newer = await ground.build("newer");
  await timed(`${domain}: upgrade with --restart`, () => live.well("restart", { by: newer }));
  await live.agent();
  const { text: version } = await ground.run([`${live.guardDir}/lima-guard`, "--version"]);
  assert.equal(version, "lima-guard 0.99.2\n");
  await live.well("check", { by: newer });
  await live.well("uninstall", { by: newer });
  await isBack(live);
}

/** An instance of another user than the one who types: installed by who may use sudo; asked by its owner, by root and by both not. */
async function secondUser(ground: Ground, domain: Domain): Promise<void> {
  if ("why" in ground.other) return note(`a second user: not asked: ${ground.other.why}`);
  await using live = await Live.make(ground, { domain, owner: "other" });
  await live.load();
  const agent = await live.agent();
  const { text: uid } = await ground.run(["ps", "-o", "uid=", "-p", String(agent)]);
  assert.equal(Number(uid), ground.other.uid, "UserName");
  await live.well("install");
  assertClosed(live);
  await live.agent();
  // Its owner may not reach the folder of who has installed it.
  const by = `${live.guardDir}/lima-guard`;
  for (const as of ["other", "root", "user"] as const) {
    const checked = await live.guard("check", { as, by });
    note(`a second user: check as ${as === "other" ? "owner" : as}: ${checked.code}: ${inOneLine(checked.text)}`);
    assert.equal(checked.code, 0, checked.text);
  }
  await stopped(live, by);
  await live.well("uninstall");
  await isBack(live);
}

/** All of it under a umask that closes everything. */
async function closed(ground: Ground, domain: Domain): Promise<void> {
  const umask = "077";
  await using live = await Live.make(ground, { domain });
  await live.load();
  await live.agent();
  await live.well("install", { umask });
  assertClosed(live);
  const modes = [live.plist, live.guardDir, `${live.guardDir}/lima-guard`].map((path) =>
    `${path.slice(path.lastIndexOf("/") + 1)} ${((Deno.statSync(path).mode ?? 0) & 0o7777).toString(8)}`
  );
  note(`${domain}, umask ${umask}: ${modes.join(", ")}`);
  await live.agent();
  await live.well("check", { umask });
  await live.well("uninstall", { umask });
  await isBack(live);
}

/** What was switched off, and is not loaded, stays so. */
async function switchedOff(ground: Ground, domain: Domain): Promise<void> {
  await using live = await Live.make(ground, { domain });
  const isOff = async () => {
    const { text } = await ground.run(["launchctl", "print-disabled", live.domainTarget]);
    return new RegExp(`"${live.label}" => (disabled|true)`).test(text);
  };
  await live.must(["launchctl", "disable", live.target], live.keeper);
  try {
    const refused = await live.asKeeper("launchctl", "bootstrap", live.domainTarget, live.plist);
    note(`${domain}, disabled: bootstrap ${refused.code}: ${inOneLine(refused.text)}`);
    for (const what of ["install", "check", "uninstall"] as const) {
      const said = await live.guard(what);
      note(`${domain}, disabled: ${what} ${said.code}: ${inOneLine(said.text)}`);
      if (what !== "check") assert.equal(said.code, 0, said.text);
      assert.deepEqual([await isOff(), (await live.print()).code], [true, 113], `${what}: off, and not loaded`);
    }
    assert.equal(Deno.readTextFileSync(live.plist), live.text);
  } finally {
    await live.asKeeper("launchctl", "enable", live.target);
  }
}

/** The test itself is killed: its job, lima-guard and instance stay, and the next run takes the job away. */
async function killedRun(ground: Ground, domain: Domain): Promise<void> {
  await using live = await Live.make(ground, { domain });
  await live.load();
  const agent = await live.agent();
  await live.well("install");
  await live.must(["launchctl", "disable", live.target], live.keeper);
  await sweep(ground, domain);
  assert.equal((await live.print()).code, 113);
  assert.equal(isAlive(agent), false);
  assert.deepEqual((await leftovers(ground)).filter((one) => one.startsWith("/")), []);
}

export const STORIES: readonly Story[] = [
  { name: "install, check, stop, crash, reload, uninstall", domains: BOTH, tell: wholeAgain },
  { name: "a process without a host agent", domains: BOTH, tell: bare },
  { name: "a time limit of 120 and of 300", domains: BOTH, tell: limits },
  { name: "a job that is disabled", domains: BOTH, tell: switchedOff },
  { name: "umask 077", domains: BOTH, tell: closed },
  { name: "what a killed run has left", domains: BOTH, tell: killedRun },
  { name: "an upgrade, and one that fails", domains: ["daemon"], tell: upgrade },
  { name: "a second user", domains: ["daemon"], tell: secondUser },
];

/** One story, on a ground without the rests of others; it leaves nothing itself. */
export async function tellOn(ground: Ground, domain: Domain, story: Story): Promise<void> {
  await sweep(ground, domain);
  const disabled = await disabledLabels(ground, domain);
  await story.tell(ground, domain);
  await eventually(async () => assert.deepEqual(await leftovers(ground), []));
  assert.deepEqual(await disabledLabels(ground, domain), disabled, "print-disabled, before and after");
}

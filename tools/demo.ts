/**
 * `deno task demo`: the two faults that lima-guard is for, and what it does about them, also for a user of Colima, on
 * real processes in directories that are thrown away. Every claim that is printed was checked; status 1 where one did
 * not come true.
 *
 * The first fault is shown with the machine's own limactl where one can be used. That is harmless: the only instance of
 * its LIMA_HOME has an empty disk, and the only process that its `stop --force` hits was started to be hit. The second
 * fault needs a Mac and a broken guest, so there the tests' stand-in for limactl is used.
 * @module
 */

import assert from "node:assert/strict";
import { parseInstallArgs } from "../install.ts";
import { parseCommandLine, VERSION } from "../lima_guard.ts";
import {
  eventually,
  exists,
  type Home,
  Instance,
  isAlive,
  killChild,
  runGuard,
  sshGuest,
  startBystander,
  tempColimaHome,
  tempLimaHome,
  whyNoSshd,
  within,
} from "../tests/helpers/mod.ts";
import { goOn, undoingAll } from "./interrupt.ts";
import { findLimactl, findProgram, type RealLimactl } from "./real_limactl.ts";
import { Screen } from "./screen.ts";

/** Nothing that is typed here takes long; a command that hangs must not take the demo with it. */
const LIMIT_MS = 15_000;

const NAME = "demo";
const DIR = `lima/${NAME}`;
const START = `limactl start ${NAME} --foreground`;

const STAND_IN = "a stand-in from the tests, which keeps the files, the messages and the signals of Lima 2.2.0 and " +
  "runs no virtual machine";

/** A LIMA_HOME with one instance, and what it takes to type commands there. */
class Stage {
  constructor(
    readonly show: Screen,
    readonly undo: AsyncDisposableStack,
    readonly interrupted: AbortSignal,
    readonly home: Home,
    readonly instance: Instance,
    readonly env: Readonly<Record<string, string>> = home.env,
  ) {}

  /** Runs a shell command, and shows it with all that it prints. */
  async type(line: string): Promise<{ status: number; text: string }> {
    this.show.command(line);
    // To a file: a host agent that lives on would keep a pipe open.
    const printed = `${this.home.root}/printed`;
    const child = await this.#spawn("sh", ["-c", `exec >'${printed}' 2>&1\n${line}`]);
    const { code } = await within(child.status, LIMIT_MS, () => `"${line}" has not ended`);
    const text = await Deno.readTextFile(printed);
    this.show.output(text);
    return { status: code, text };
  }

  /** Starts the host agent, and shows what limactl prints before it becomes that. */
  async start(): Promise<{ child: Deno.ChildProcess; text: string }> {
    this.show.command(`${START} &`);
    const [program = "", ...args] = START.split(" ");
    const child = await this.#spawn(program, args, "piped");
    // The host agent logs to files of its own: limactl's stderr ends when it has become the host agent, or has ended.
    const text = await within(new Response(child.stderr).text(), LIMIT_MS, () => `"${START}" talks without end`);
    this.show.output(text);
    return { child, text };
  }

  /** Runs lima-guard, and shows its log and its result. */
  async guard(...args: string[]): Promise<{ status: number; text: string }> {
    this.show.command(`lima-guard ${args.join(" ")}`);
    await goOn(this.interrupted);
    const { status, stdout, stderr } = await runGuard(this.home, args, {
      timeoutMs: LIMIT_MS,
      env: { LIMA_HOME: this.env.LIMA_HOME ?? "" },
    });
    this.show.output(stderr + stdout);
    return { status, text: stderr + stdout };
  }

  /** A process that looks in `ps` like NAME. */
  async otherProgram(name: string) {
    await goOn(this.interrupted);
    return this.undo.use(await startBystander(this.home, { command: [name] }));
  }

  async #spawn(program: string, args: string[], stderr: "piped" | "null" = "null"): Promise<Deno.ChildProcess> {
    await goOn(this.interrupted);
    const child = new Deno.Command(program, {
      args,
      cwd: this.home.root,
      env: this.env,
      clearEnv: true,
      stdin: "null",
      stdout: "null",
      stderr,
    }).spawn();
    this.undo.defer(async () => {
      killChild(child);
      await child.status;
    });
    return child;
  }
}

/** Does it hold, now or in a moment? */
function comesTrue(condition: () => boolean): Promise<boolean> {
  return eventually(() => assert.ok(condition()), { withinMs: 5000 }).then(() => true, () => false);
}

function isUnharmed(program: { assertAlive(): void }): boolean {
  try {
    program.assertAlive();
    return true;
  } catch {
    return false;
  }
}

// --- the first fault -------------------------------------------------------------------------------------------------

async function afterTheReboot({ stage, vm, using }: BestStage): Promise<void> {
  const { show, home, instance } = stage;
  const file = `${DIR}/${vm}.pid`;
  show.heading("1. After a reboot, Lima takes another program for its virtual machine");
  show.say(`(limactl, Lima's command, is ${using}.)`);
  show.say(
    `Lima runs virtual machines, and writes the process number (PID) of each into a small file, here ${file}. After ` +
      `a power cut the file is still there, and the computer may have given that number to any other program. A demo ` +
      `cannot reboot your computer, so it writes the file as it would be then. The number is that of a program called ` +
      `nightly-backup, which has nothing to do with Lima.`,
  );
  const backup = await stage.otherProgram("nightly-backup");
  await stage.type(`echo ${backup.pid} >${file}`);
  await stage.type(`ps -o pid,command -p ${backup.pid}`);

  show.say("Lima only asks whether some process has this number, and believes that its machine is still running.");
  const refused = await stage.type(START);
  show.claim(
    `Lima refuses to start its virtual machine (status ${refused.status})`,
    refused.status === 1 && refused.text.includes("driver is running but host agent is not"),
  );

  show.say(
    `The usual advice is "limactl stop --force". It kills whatever the file names. So that nightly-backup lives on, ` +
      `the file now names a third program, photo-import.`,
  );
  const photos = await stage.otherProgram("photo-import");
  home.mayBeSignalled(photos.pid);
  await stage.type(`echo ${photos.pid} >${file}`);
  const wasAlive = isAlive(photos.pid);
  await stage.type(`limactl stop --force ${NAME}`);
  const isGone = await comesTrue(() => !exists(photos.pid));
  await stage.type(`ps -o pid,command -p ${photos.pid}`);
  show.claim("photo-import was alive, and Lima has killed it", wasAlive && isGone);

  show.say(
    `lima-guard asks what the process is. This one is none of Lima's programs, so the file is wrong: it is removed, ` +
      `and the process is left alone.`,
  );
  await stage.type(`echo ${backup.pid} >${file}`);
  const pre = await stage.guard("--pre", NAME);
  show.claim("lima-guard reports success (status 0)", pre.status === 0);
  show.claim(`${file} is gone`, !instance.has(`${vm}.pid`));
  show.claim("nightly-backup is alive, and received no signal of any kind", isUnharmed(backup));

  show.say("Now the same start works.");
  const { child, text } = await stage.start();
  const isUp = await comesTrue(() => instance.pid("ha.pid") === child.pid);
  show.claim("Lima starts its virtual machine", text.includes("Starting the instance") && isUp);
}

interface BestStage {
  readonly stage: Stage;
  /** The driver, whose PID file is `VM.pid`. */
  readonly vm: "vz" | "qemu";
  readonly using: string;
}

/** With the machine's own limactl where it can make an instance, else with the stand-in. */
function bestStage(show: Screen, undo: AsyncDisposableStack, interrupted: AbortSignal, home: Home): BestStage {
  const vm = Deno.build.os === "darwin" ? "vz" : "qemu";
  const real = findLimactl();
  const why = "why" in real ? real.why : whyNoInstance(home, real, vm);
  if (!("why" in real) && why === undefined) {
    const stage = new Stage(show, undo, interrupted, home, new Instance(home, NAME), realEnv(home, real));
    return { stage, vm, using: `${real.path} of this machine: ${real.version}` };
  }
  const stage = new Stage(show, undo, interrupted, home, home.instance(NAME));
  return { stage, vm: "vz", using: `here ${STAND_IN}: ${why}` };
}

/** Makes an instance that boots from an empty disk. Returns why that cannot be had. */
function whyNoInstance(home: Home, real: RealLimactl, vm: BestStage["vm"]): string | undefined {
  const arch = Deno.build.arch;
  const qemu = `qemu-system-${arch}`;
  if (vm === "qemu" && !Deno.env.has(variableOf(qemu)) && findProgram(qemu) === undefined) return `no ${qemu} on PATH`;
  const image = `${home.root}/empty.img`;
  Deno.writeTextFileSync(image, "");
  Deno.truncateSync(image, 16 * 1024 * 1024);
  const template = `${home.root}/${NAME}.yaml`;
  Deno.writeTextFileSync(template, templateOf(vm, image, arch));
  Deno.writeTextFileSync(`${home.lima}/_config/networks.yaml`, networksOf(home));
  const { success, stderr } = new Deno.Command(real.path, {
    args: ["create", "--tty=false", "--name", NAME, template],
    cwd: home.root,
    env: realEnv(home, real),
    clearEnv: true,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).outputSync();
  if (success) return undefined;
  // What it has made so far would be in the stand-in's way.
  Deno.removeSync(home.lima, { recursive: true });
  Deno.mkdirSync(`${home.lima}/_config`, { recursive: true });
  const lastLine = new TextDecoder().decode(stderr).trim().split("\n").at(-1);
  return `${real.path} cannot make an instance from an empty disk: ${lastLine}`;
}

function templateOf(vm: BestStage["vm"], image: string, arch: string): string {
  return `vmType: ${vm}
arch: ${arch}
images:
- {location: "${image}", arch: ${arch}}
plain: true
mounts: []
containerd: {system: false, user: false}
cpus: 1
memory: 256MiB
disk: 16MiB
${arch === "x86_64" && vm === "qemu" ? "firmware: {legacyBIOS: true}" : ""}
`;
}

/**
 * Every start stops the networks that its LIMA_HOME does not use. With the usual directory for the networks' PID files,
 * which all LIMA_HOMEs of a Mac share, the demo would stop those of the machine's real instances.
 */
function networksOf(home: Home): string {
  return `paths: {socketVMNet: ${home.root}/none, varRun: ${home.root}/run, sudoers: ${home.root}/none}
networks:
  user-v2: {mode: user-v2, gateway: 192.168.104.1, netmask: 255.255.255.0}
`;
}

function realEnv(home: Home, real: RealLimactl): Record<string, string> {
  const qemu = variableOf(`qemu-system-${Deno.build.arch}`);
  const path = Deno.env.get(qemu);
  return {
    ...home.env,
    PATH: `${real.path.replace(/\/[^/]*$/, "")}:${Deno.env.get("PATH") ?? ""}`,
    ...path === undefined ? {} : { [qemu]: path },
  };
}

/** Lima takes another QEMU from a variable of this name. */
function variableOf(qemu: string): string {
  return qemu.replaceAll("-", "_").toUpperCase();
}

// --- the second fault ------------------------------------------------------------------------------------------------

async function atShutdown(
  show: Screen,
  undo: AsyncDisposableStack,
  interrupted: AbortSignal,
  home: Home,
): Promise<void> {
  const disk = "guest-disk";
  const conf = { vmtype: "vz", stop: "cannot-request-stop", guest_disk: `${home.root}/${disk}` };
  const instance = home.instance(NAME, { conf });
  const stage = new Stage(show, undo, interrupted, home, instance);
  const noSsh = whyNoSshd();
  show.heading("2. At shutdown, Lima cuts the power of a running system");
  show.say(
    `(limactl is ${STAND_IN}: this fault needs a Mac. ` +
      (noSsh === undefined
        ? `The ssh server of the system inside the virtual machine, the guest, is a real one. `
        : `The guest, the system inside the virtual machine, has no ssh server here: ${noSsh}. `) +
      `Its disk is a file with one word: dirty while it runs, clean after it was switched off in good order.)`,
  );
  if (noSsh === undefined) {
    await goOn(interrupted);
    undo.use(await sshGuest(instance));
  }
  const isRunning = async ({ child }: { child: Deno.ChildProcess }) =>
    await comesTrue(() => instance.pid("ha.pid") === child.pid && instance.events().some((event) => event.running));
  const word = () => Deno.readTextFileSync(`${home.root}/${disk}`).trim();

  const first = await stage.start();
  show.claim("the virtual machine is running", await isRunning(first));
  show.say(
    `When a Mac shuts down, it sends SIGTERM to the process of Lima that looks after the machine, the host agent. That ` +
      `is to stop the guest first. But sometimes it cannot (lima-vm/lima#5087): then it gives up, and the guest's ` +
      `power goes with it.`,
  );
  await stage.type(`kill -TERM ${first.child.pid}`);
  const { code } = await within(first.child.status, LIMIT_MS, () => "the host agent has not ended");
  await stage.type(`tail -n 1 ${DIR}/ha.stderr.log`);
  await stage.type(`cat ${disk}`);
  await stage.type(`cat ${DIR}/vz.pid`);
  show.claim(`the host agent has given up (status ${code})`, code === 1);
  show.claim("the guest's disk is dirty", word() === "dirty");
  show.claim("the PID file of the machine was left behind", instance.pid("vz.pid") === first.child.pid);

  show.say("After the reboot, this number belongs to a program called nightly-backup, and we are where we were above.");
  const backup = await stage.otherProgram("nightly-backup");
  await stage.type(`echo ${backup.pid} >${DIR}/vz.pid`);
  const refused = await stage.type(START);
  show.claim(`Lima refuses to start its virtual machine (status ${refused.status})`, refused.status === 1);

  show.say("Once more with lima-guard: it clears the way, and the machine starts.");
  const pre = await stage.guard("--pre", NAME);
  const second = await stage.start();
  show.claim("the virtual machine is running", pre.status === 0 && await isRunning(second));
  show.say(
    `At shutdown, lima-guard asks the guest itself over ssh to switch off, before Lima is asked. Then it removes ` +
      `what Lima leaves behind.`,
  );
  const stop = await stage.guard("--stop", NAME);
  show.claim("lima-guard reports success (status 0)", stop.status === 0);
  if (noSsh === undefined) {
    await stage.type(`tail -n 1 ${DIR}/standin.guest/log`);
    show.claim("the guest was asked to switch off", instance.guestLog().at(-1) === "systemctl poweroff");
    await stage.type(`cat ${disk}`);
    show.claim("the guest's disk is clean", word() === "clean");
  } else {
    show.skipped("the guest is asked over ssh, and its disk is clean (Lima alone cannot save it)", noSsh);
  }
  await stage.type(`find ${DIR} -name '*.pid' -o -name '*.sock'`);
  const left = instance.files().filter((file) => /\.(pid|sock)$/.test(file));
  show.claim("no PID file and no socket is left, the next start will work", left.length === 0);
  show.claim("the host agent has ended", await comesTrue(() => !isAlive(second.child.pid)));
  show.claim("nightly-backup is alive, and received no signal of any kind", isUnharmed(backup));
}

// --- Colima ----------------------------------------------------------------------------------------------------------

async function withColima(
  show: Screen,
  undo: AsyncDisposableStack,
  interrupted: AbortSignal,
  home: Home,
): Promise<void> {
  const { LIMA_HOME: _, ...env } = home.env;
  const stage = new Stage(show, undo, interrupted, home, home.instance("colima"), env);
  const { instance } = stage;
  const file = "home/.colima/_lima/colima/vz.pid";
  show.heading("3. The same with Colima");
  show.say(
    `(colima is a stand-in too, above that limactl.) Colima's machines are Lima's, in a home of their own, ~/.colima/_lima. ` +
      `The machine is called colima. This is the night after an unclean reboot:`,
  );
  const backup = await stage.otherProgram("nightly-backup");
  await stage.type(`echo ${backup.pid} >${file}`);
  const refused = await stage.type("colima start");
  show.claim(
    `Colima refuses to start its virtual machine (status ${refused.status})`,
    refused.status === 1 && refused.text.includes("driver is running but host agent is not"),
  );
  show.say(`"colima stop --force" would kill nightly-backup, as above. lima-guard finds Colima's home by itself:`);
  const pre = await stage.guard("--pre", "colima");
  show.claim("lima-guard reports success (status 0)", pre.status === 0 && !instance.has("vz.pid"));
  const started = await stage.type("colima start");
  const isUp = await comesTrue(() => instance.events().some((event) => event.running));
  show.claim("Colima starts its virtual machine", started.status === 0 && isUp);
  show.claim("nightly-backup is alive, and received no signal of any kind", isUnharmed(backup));
}

// --- all -------------------------------------------------------------------------------------------------------------

/** What to type after the demo; for Colima the instance is `colima`. */
const NEXT = [
  ["lima-guard --status", "what is there, and what is wrong; changes nothing"],
  ["lima-guard --pre NAME", "repairs it; then limactl start NAME, or colima start"],
  ["lima-guard --install --dry-run NAME", "what launchd would run; writes nothing"],
  ["lima-guard --install NAME", "lets launchd run it at each boot and shutdown"],
  ["lima-guard --check NAME", "is it still so? 1 if something has overwritten the job"],
] as const;

function isUnderstood(line: string): boolean {
  const args = line.split(" ").slice(1);
  const asked = parseCommandLine(args);
  return !("usage" in ("install" in asked ? parseInstallArgs(args) : asked));
}

function showNext(show: Screen): void {
  show.say("What to type next, with lima-guard on the machine (README.md, Install). With Colima, NAME is colima:");
  for (const [line, what] of NEXT) show.command(`${line.padEnd(37)}# ${what}`);
  show.claim("lima-guard understands these commands", NEXT.every(([line]) => isUnderstood(line)));
}

const show = new Screen();
const roots: string[] = [];

async function demo(undo: AsyncDisposableStack, interrupted: AbortSignal): Promise<number> {
  interrupted.addEventListener("abort", () => show.silent = true);
  const newHome = async (make: () => Promise<Home> = tempLimaHome) => {
    const home = undo.use(await make());
    roots.push(home.root);
    return home;
  };
  show.say(
    `lima-guard ${VERSION} starts and stops Lima's virtual machines without harm to other programs. All that follows ` +
      `happens now, with real processes, in directories that are thrown away at the end. Every claim is checked. ` +
      `(lima-guard is lima_guard.ts, run by Deno. LIMA_HOME, where Lima keeps its files, is the directory lima.)`,
  );
  await afterTheReboot(bestStage(show, undo, interrupted, await newHome()));
  await atShutdown(show, undo, interrupted, await newHome());
  await withColima(show, undo, interrupted, await newHome(tempColimaHome));
  return 0;
}

function exist(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

let status = await undoingAll(demo).catch((error) => {
  show.output(`\nThe demo cannot continue: ${error instanceof Error ? error.stack ?? error.message : error}`);
  return 1;
});
if (status === 0) {
  show.heading("The end");
  // A process that was left would have made the undoing fail.
  show.claim("no process and no file of this demo is left", !roots.some(exist));
  showNext(show);
  show.say(`${show.claims - show.broken} of ${show.claims} claims came true.`);
  if (show.broken > 0) status = 1;
}
Deno.exit(status);

/**
 * A real limactl, where there is one on PATH that is no stand-in, with QEMU; as root, which limactl refuses, also an
 * ordinary user (LIMA_GUARD_USER names one). LIMA_GUARD_FIRMWARE may name a template of an instance that boots nothing;
 * else one is made. A limactl that was built with `-tags external_qemu`, with lima-driver-qemu in
 * ../libexec/lima, has an external driver. LIMA_GUARD_GUEST names a template of a Linux guest with systemd and sshd, which cannot be made here.
 */

import assert from "node:assert/strict";
import { existsSync, realpathSync } from "node:fs";
import { dirname } from "node:path/posix";
import { findProgram } from "../../tools/real_limactl.ts";
import {
  type Bystander,
  eventually,
  type Home,
  Instance,
  isAlive,
  killChild,
  NO_ORDINARY_USER,
  ordinaryUser,
  ps,
  startBystander,
  tempLimaHome,
} from "./mod.ts";
import type { PreOptions } from "./pre.ts";

// --- what is here ---------------------------------------------------------------------------------------------------------------

export interface Real {
  readonly limactl: string;
  /** 2.2.0 */
  readonly version: string;
  readonly user: { readonly name: string; readonly uid: number; readonly gid: number };
}

const QEMU = { x86_64: "qemu-system-x86_64", aarch64: "qemu-system-aarch64" }[Deno.build.arch];

function findReal(): Real | { why: string } {
  const limactl = findProgram("limactl");
  if (limactl === undefined) return { why: "no limactl" };
  const user = whoRuns();
  if (!user) return { why: `limactl refuses root; ${NO_ORDINARY_USER}` };
  const said = new Deno.Command(limactl, {
    args: ["--version"],
    ...as(user),
    env: environment(user),
    clearEnv: true,
    cwd: "/",
  })
    .outputSync();
  const text = new TextDecoder().decode(said.stdout);
  const version = /^limactl version v?(\d+\.\d+\.\d+)/.exec(text)?.[1];
  if (version === undefined) return { why: `${limactl} --version does not tell its version to ${user.name}` };
  if (text.includes("stand-in")) return { why: "no limactl (a stand-in is on PATH)" };
  const named = Deno.env.get(`QEMU_SYSTEM_${Deno.build.arch.toUpperCase()}`);
  if (!named && findProgram(QEMU) === undefined) return { why: `no ${QEMU}` };
  if (!Deno.env.get("LIMA_GUARD_FIRMWARE") && Deno.build.arch !== "x86_64") {
    return { why: "no LIMA_GUARD_FIRMWARE, and a template can be made for x86_64 only" };
  }
  return { limactl, version, user };
}

/** Who runs limactl: ourselves; in root's place, the user that is named, or the tests' own. */
function whoRuns(): Real["user"] | null {
  if (Deno.uid() !== 0) return { name: id("-un"), uid: Number(id("-u")), gid: Number(id("-g")) };
  const name = Deno.env.get("LIMA_GUARD_USER");
  return name ? { name, uid: Number(id("-u", name)), gid: Number(id("-g", name)) } : ordinaryUser();
}

function id(...args: string[]): string {
  return new TextDecoder().decode(new Deno.Command("id", { args }).outputSync().stdout).trim();
}

export function as({ uid, gid }: Real["user"]): { uid?: number; gid?: number } {
  return Deno.uid() === 0 ? { uid, gid } : {};
}

/** For limactl, without the stand-ins on PATH. */
export function environment(user: Real["user"], home?: Home): Record<string, string> {
  const qemu = Object.entries(Deno.env.toObject()).filter(([name]) => name.startsWith("QEMU_SYSTEM_"));
  const mine = { PATH: Deno.env.get("PATH") ?? "", USER: user.name, LOGNAME: user.name, ...Object.fromEntries(qemu) };
  if (!home) return { HOME: "/", ...mine };
  return { ...home.mark, LIMA_HOME: home.lima, HOME: home.user, TMPDIR: home.root, ...mine };
}

export const real = findReal();
const WHY_NOT = "why" in real ? real.why : undefined;

// --- an instance that boots nothing -------------------------------------------------------------------------------------------------

export interface World {
  readonly real: Real;
  readonly home: Home;
  readonly k3s: Instance;
  readonly bystander: Bystander;
  /** For the guard: it runs as the instance's owner. */
  readonly guard: PreOptions;
}

const driver = "limactl" in real ? findDriver(real.limactl) : undefined;

function findDriver(limactl: string): string | undefined {
  const path = `${dirname(dirname(realpathSync(limactl)))}/libexec/lima/lima-driver-qemu`;
  return existsSync(path) ? path : undefined;
}

/**
 * A test with an instance k3s of a real limactl, which boots nothing, or (`guest`) a Linux that can be powered off;
 * `external`: its QEMU has an external driver.
 */
export function realTest(
  title: string,
  body: (world: World) => Promise<void>,
  { name = "lima", guest = false, external = false } = {},
): void {
  const guestTemplate = Deno.env.get("LIMA_GUARD_GUEST");
  const whyNot = WHY_NOT ??
    (guest && !guestTemplate
      ? "no LIMA_GUARD_GUEST"
      : external && driver === undefined
      ? "no lima-driver-qemu beside this limactl"
      : undefined);
  Deno.test({
    name: whyNot === undefined ? title : `${title} (skipped: ${whyNot})`,
    ignore: whyNot !== undefined,
    async fn() {
      assert.ok("limactl" in real);
      const { user } = real;
      await using home = await tempLimaHome({ name });
      const template = guest ? guestTemplate! : Deno.env.get("LIMA_GUARD_FIRMWARE") ?? firmware(home);
      home.giveTo(user);
      const made = await runLimactl(home, "create", "--tty=false", "--name", "k3s", template);
      assert.equal(made.status, 0, made.stderr);
      const k3s = new Instance(home, "k3s");
      await using bystander = await startBystander(home, as(user));
      const guard = Deno.uid() === 0 ? { user } : {};
      await body({ real, home, k3s, bystander, guard });
      bystander.assertAlive();
    },
  });
}

/** A template with a disk on which there is nothing, or one boot sector: QEMU gets no further than its BIOS, or that. */
export function firmware(home: Home, sector: readonly number[] = []): string {
  const image = `${home.root}/firmware.img`;
  const disk = new Uint8Array(1024 * 1024);
  disk.set(sector);
  Deno.writeFileSync(image, disk);
  const template = `${home.root}/firmware.yaml`;
  Deno.writeTextFileSync(
    template,
    `vmType: qemu
arch: x86_64
images:
- location: ${JSON.stringify(image)}
  arch: x86_64
plain: true
mounts: []
containerd: {system: false, user: false}
firmware: {legacyBIOS: true}
cpus: 1
memory: 256MiB
disk: 16MiB
`,
  );
  return template;
}

export async function runLimactl(
  home: Home,
  ...args: string[]
): Promise<{ status: number; stdout: string; stderr: string }> {
  assert.ok("limactl" in real);
  const { user, limactl } = real;
  const options = { args, ...as(user), env: environment(user, home), clearEnv: true, cwd: home.lima };
  const output = await new Deno.Command(limactl, { ...options, stdin: "null" }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { status: output.code, stdout: text(output.stdout), stderr: text(output.stderr) };
}

export interface Started extends AsyncDisposable {
  readonly pid: number;
  /** The number of its QEMU, where it has gone on. */
  readonly qemu: number | undefined;
  readonly said: Promise<string>;
  /** Its status, where it ends by itself; undefined where it continued: the host agent and QEMU are there. */
  readonly status: number | undefined;
  kill(): Promise<void>;
}

/** `limactl start k3s --foreground` as launchd would run it, until it has refused or gone on. */
export async function start({ real: { limactl, user }, home, k3s }: World): Promise<Started> {
  const child = new Deno.Command(limactl, {
    args: ["start", "--tty=false", "k3s", "--foreground"],
    ...as(user),
    env: environment(user, home),
    clearEnv: true,
    cwd: k3s.dir,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const said = new Response(child.stderr).text();
  let status: number | undefined;
  const ended = child.status.then(({ code }) => status = code);
  await eventually(() => {
    if (status !== undefined) return;
    const pids = [k3s.pid("ha.pid"), k3s.pid("qemu.pid")];
    assert.ok(pids[0] === child.pid && pids[1] && isAlive(pids[1]) && k3s.events().length > 0, k3s.files().join(" "));
  }, { withinMs: 30_000 });
  const qemu = status === undefined ? k3s.pid("qemu.pid") : undefined;
  const kill = async () => {
    killChild(child);
    await ended;
    await said;
  };
  return {
    pid: child.pid,
    qemu,
    said,
    status,
    kill,
    async [Symbol.asyncDispose]() {
      await kill();
      const isThere = () => qemu !== undefined && isAlive(qemu) && ps(qemu)?.command.includes(`${k3s.dir}/qemu.pid`);
      if (isThere()) Deno.kill(qemu!, "SIGKILL");
      await eventually(() => assert.ok(!isThere()));
    },
  };
}

/**
 * `deno task bench`: lima-guard on a whole machine, beside what it is compared to there: a real limactl with QEMU (see
 * tests/helpers/real_lima.ts), and, for root, instances of two users.
 */

import assert from "node:assert/strict";
import {
  agentOf,
  eventually,
  everyonesEnv,
  type Home,
  Instance,
  NO_ORDINARY_USER,
  ordinaryUser,
  runGuard,
  startBystander,
  tempLimaHome,
} from "../tests/helpers/mod.ts";
import { as, firmware, real, runLimactl, start, type World } from "../tests/helpers/real_lima.ts";
import type { Values } from "./supervised.ts";

async function secondsOf(work: () => Promise<{ status: number; stderr: string }>): Promise<number> {
  const began = performance.now();
  const { status, stderr } = await work();
  const seconds = (performance.now() - began) / 1000;
  if (status !== 0) throw new Error(`status ${status}: ${stderr}`);
  return seconds;
}

// --- beside a real limactl --------------------------------------------------------------------------------------------

/**
 * A boot sector whose guest hears the power button and does nothing else: it permits the event (port 0x602), writes an `U`
 * to the serial port, sleeps until the next tick of the clock, looks whether the event has come (0x600), and then powers
 * off (0x604). These are the ports of ACPI's fixed hardware as QEMU's BIOS lays them out.
 */
// deno-fmt-ignore
const HEARS_THE_BUTTON = [
  0xb8, 0x00, 0x01, 0xba, 0x02, 0x06, 0xef, //                   mov ax,100h; mov dx,602h; out dx,ax
  0xb0, 0x55, 0xba, 0xf8, 0x03, 0xee, 0xba, 0x00, 0x06, //       mov al,'U'; mov dx,3f8h; out dx,al; mov dx,600h
  0xfb, 0xf4, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf8, //             again: sti; hlt; in ax,dx; test ah,1; jz again
  0xb8, 0x00, 0x20, 0xba, 0x04, 0x06, 0xef, 0xf4, //             mov ax,2000h; mov dx,604h; out dx,ax; hlt
];
const SECTOR = [...HEARS_THE_BUTTON, ...Array<number>(510 - HEARS_THE_BUTTON.length).fill(0), 0x55, 0xaa];

/** The time limit that lima-guard gets. */
const STOP_LIMIT_S = 10;

/** The guard as every user can run it; from source each user would want its packages. */
type Guard = readonly string[];

/** An instance of a real limactl, which has never run; or why there is none. */
export async function realWorld(undo: AsyncDisposableStack, program: Guard): Promise<World | string> {
  if ("why" in real) return real.why;
  const { user } = real;
  const home = undo.use(await tempLimaHome());
  const template = firmware(home, SECTOR);
  home.giveTo(user);
  const made = await runLimactl(home, "create", "--tty=false", "--name", "k3s", template);
  if (made.status !== 0) return `limactl create fails: ${made.stderr}`;
  const bystander = undo.use(await startBystander(home, as(user)));
  return {
    real,
    home,
    k3s: new Instance(home, "k3s"),
    bystander,
    guard: { program, user: Deno.uid() === 0 ? user : null },
  };
}

/** In milliseconds: what there is, as limactl says it and as lima-guard does. */
export async function looks({ home, guard }: World): Promise<Values> {
  const list = await secondsOf(() => runLimactl(home, "list"));
  const status = await secondsOf(() => runGuard(home, ["--status"], guard));
  return { list: list * 1000, status: status * 1000 };
}

/** In seconds: two starts, the second after a PID file that names another program; two stops. */
export async function startsAndStops(world: World): Promise<Values> {
  const { home, k3s, bystander, guard } = world;
  await using undo = new AsyncDisposableStack();
  const begin = () =>
    secondsOf(async () => {
      for (const log of k3s.files().filter((file) => file.startsWith("serial"))) k3s.remove(log);
      const { status = 0, said } = undo.use(await start(world));
      return { status, stderr: status === 0 ? "" : await said };
    });
  const guestIsUp = () =>
    eventually(() => assert.ok(k3s.files().some((file) => file.startsWith("serial") && k3s.read(file)?.includes("U"))));
  const clean = await begin();
  await guestIsUp();
  const limactl = await secondsOf(() => runLimactl(home, "stop", "k3s"));
  k3s.pidFile("qemu.pid", bystander.pid);
  home.giveTo(world.real.user);
  const stale = await secondsOf(() => runGuard(home, ["--pre", "k3s"], guard)) + await begin();
  await guestIsUp();
  const stop = ["--stop", "k3s", "--timeout", String(STOP_LIMIT_S)];
  const guarded = await secondsOf(async () => {
    const stopped = await runGuard(home, stop, guard);
    assert.doesNotMatch(stopped.stdout, /hard/, "the guest was to power off");
    return stopped;
  });
  return { clean, limactl, stale, guarded };
}

// --- the instances of two users ---------------------------------------------------------------------------------------

interface Machine {
  /** Of one user, for a stop of its own. */
  readonly alone: Instance;
  readonly others: readonly Instance[];
  readonly guard: { readonly program: Guard; readonly env: ReturnType<typeof everyonesEnv> };
  readonly root: Home;
}

const USERS = [ordinaryUser(), ordinaryUser("lgtest2"), ordinaryUser()];

/** Three homes of two users; or why there are none: a machine with other instances is left alone. */
export async function machine(undo: AsyncDisposableStack, program: Guard): Promise<Machine | string> {
  if (USERS[0] === null) return NO_ORDINARY_USER;
  const homes = await Promise.all(Array.from({ length: 5 }, () => tempLimaHome()));
  const [root, ...users] = homes.map((home) => undo.use(home));
  const [alone, ...others] = users.map((home) => home.instance("k3s"));
  const made = { root: root!, alone: alone!, others, guard: { program, env: everyonesEnv(root!) } };
  const there = await homesOf(made);
  return there.length > 0 ? `the machine has instances of its own, in ${there.join(", ")}` : made;
}

/** The homes of all instances that root's `--stop --all` would stop. */
async function homesOf({ root, guard }: Machine): Promise<string[]> {
  const { json, status, stdout } = await runGuard(root, ["--status", "--all", "--json"], guard);
  assert.equal(status, 0, stdout);
  return json().instances.map(({ home = "?" }: { home?: string }) => home).sort();
}

/** The seconds of a user's stop of one instance, and of root's stop of three. */
export async function machineStops(machine: Machine): Promise<Values> {
  const { alone, others, root, guard } = machine;
  await using undo = new AsyncDisposableStack();
  const begin = async (instance: Instance, i: number) => undo.use(await agentOf(instance, USERS[i]!));
  await begin(alone, 0);
  const asUser = { ...guard, env: { DENO_DIR: guard.env.DENO_DIR }, user: USERS[0]! };
  const one = await secondsOf(() => runGuard(alone.home, ["--stop", "k3s"], asUser));
  for (const [i, instance] of others.entries()) await begin(instance, i);
  const expected = others.map(({ home }) => home.lima).sort();
  assert.deepEqual(await homesOf(machine), expected, "the machine has other instances too");
  return { one, all: await secondsOf(() => runGuard(root, ["--stop", "--all"], guard)) };
}

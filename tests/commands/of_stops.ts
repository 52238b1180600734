/** Locks, stops that do not succeed, and root's `--all`. */

import assert from "node:assert/strict";
import { eventually, ordinaryUser, startAgent, tempLimaHome } from "../helpers/mod.ts";
import { meanwhile, type Twist } from "../helpers/guard_with.ts";
import { startTime } from "../helpers/stop.ts";
import { asJob } from "../launchd/run.ts";
import { give, owner } from "./desk.ts";
import { type Row, runAs, type Scene } from "./rows.ts";
import { agent, end, isClear, isGone, NO_MAC, pretended } from "./scenes.ts";

export const rows = new Map<string, Row>();
const test = (title: string, row: Row) => rows.set(title, row);

const LOOKS_AT_LOCK = { "lsof -- DIR/lima-guard.lock": 0, "ls -ld DIR/lima-guard.lock": 0 };

/** Another program has the lock. */
async function locks(scene: Scene): Promise<void> {
  await pretended(scene, "/usr/libexec/other", { opens: scene.k3s.path("lima-guard.lock") });
}

/** A supervising lima-guard that a signal has stopped. */
async function stoppedSupervisor(scene: Scene): Promise<void> {
  await agent(scene);
  const lock = scene.k3s.path("lima-guard.lock");
  const pid = await pretended(scene, "/usr/local/libexec/lima-guard --run k3s --", { opens: lock });
  const record = { pid, started: startTime(pid), dir: scene.k3s.dir, role: "run", phase: "supervising" };
  Deno.writeTextFileSync(lock, `${JSON.stringify(record)}\n`);
  Deno.kill(pid, "SIGSTOP");
}

test("the lima-guard that supervises it is stopped by a signal: it continues", {
  isRootsToo: true,
  runs: ["--status k3s"],
  prepare: stoppedSupervisor,
  types: { "kill -CONT PID": 0 },
});

test("another program has the lock: when it has ended, it is done", {
  runs: ["--pre k3s"],
  twist: () => ({ lockMs: 20 }),
  prepare: locks,
  types: {
    ...LOOKS_AT_LOCK,
    "lima-guard --pre --lima-home HOME k3s": 0,
  },
  before: (scene, command) => command.startsWith("lima-guard") ? end(scene) : undefined,
});

test("another lima-guard has the lock: when it has ended, it is done", {
  runs: ["--pre k3s"],
  twist: () => ({ lockMs: 20 }),
  async prepare(scene) {
    const file = `${scene.home.root}/stay`;
    const stay = { at: "after write", file };
    if (owner) Deno.chmodSync(scene.home.root, 0o777);
    const guard = runAs(scene, "--pre k3s", {
      twist: () => ({ stays: [stay] }),
      meanwhile: ({ words }, { pid }) => words.set(String(pid), "PID"),
    });
    await eventually(() => Deno.lstatSync(`${file}.here`));
    scene.use({
      async [Symbol.asyncDispose]() {
        Deno.writeTextFileSync(`${file}.go`, "");
        await guard;
      },
    });
  },
  types: { "ps -ww -p PID": 0, "ls -ld DIR/lima-guard.lock": 0, "lima-guard --pre --lima-home HOME k3s": 0 },
  before: (scene, command) => {
    if (command.startsWith("lima-guard")) Deno.writeTextFileSync(`${scene.home.root}/stay.go`, "");
  },
});
test("a job with a short time limit is to stop, and another program has the lock", {
  runs: ["--run k3s -- true"],
  prepare: async (scene) => {
    await agent(scene);
    scene.k3s.write("lima-guard.lock", "");
    give(scene.home);
    await locks(scene);
    asJob(scene.k3s, 2);
  },
  env: () => ({ XPC_SERVICE_NAME: "io.lima-vm.autostart.k3s" }),
  async meanwhile(_, guard) {
    await guard.waitForLine(/waits up to/);
    guard.signal("SIGTERM");
  },
  types: {
    ...LOOKS_AT_LOCK,
    "lima-guard --status --lima-home HOME k3s": 0,
  },
});
test("the record in the lock is of a lima-guard that has ended, and another program has the lock", {
  runs: ["--pre k3s"],
  isDryToo: false,
  twist: () => ({ lockMs: 20 }),
  prepare: async (scene) => {
    await runAs(scene, "--pre k3s");
    await locks(scene);
  },
  before: (scene, command) => command.startsWith("lima-guard") ? end(scene) : undefined,
  types: {
    ...LOOKS_AT_LOCK,
    "lima-guard --pre --lima-home HOME k3s": 0,
  },
});
test("--run, and another program has the lock", {
  runs: ["--run k3s -- true"],
  twist: () => ({ lockMs: 20 }),
  prepare: locks,
  types: {
    ...LOOKS_AT_LOCK,
    "lima-guard --status --lima-home HOME k3s": 0,
  },
});
test("a job with a short time limit runs", {
  runs: ["--run k3s -- true"],
  prepare: ({ k3s }) => asJob(k3s, 5),
  env: () => ({ XPC_SERVICE_NAME: "io.lima-vm.autostart.k3s" }),
  types: { "lima-guard --install --lima-home HOME k3s": NO_MAC },
});
test("a job is stopped that is not found any more", {
  runs: ["--stop k3s"],
  async prepare(scene) {
    const guard = runAs(scene, `--run k3s -- ${scene.home.limactl} start k3s --foreground`, {
      env: () => ({ XPC_SERVICE_NAME: "io.lima-vm.autostart.k3s" }),
    });
    await eventually(() => assert.ok(scene.k3s.events().some((event) => event["running"])), { withinMs: 30_000 });
    scene.use({ [Symbol.asyncDispose]: async () => void await guard });
  },
  types: { "lima-guard --status --lima-home HOME k3s": 0 },
});
test("a host agent says that its instance is degraded", {
  isRootsToo: true,
  runs: ["--status k3s"],
  async prepare(scene) {
    await agent(scene);
    const status = { running: true, degraded: true, errors: ["no DNS"] };
    scene.k3s.write("ha.stdout.log", `${JSON.stringify({ time: new Date().toISOString(), status })}\n`);
  },
  types: { "tail DIR/ha.stderr.log": 0 },
});

/** After its stop, and before the clean-up, a QEMU of the instance is there; then `then` is waited for. */
function afterStages(then: (scene: Scene) => unknown): Pick<Row, "isDryToo" | "twist" | "meanwhile"> {
  const stayOf = ({ home }: Scene) => ({ at: "after append .*jsonl", nth: 3, file: `${home.root}/stay` });
  return {
    isDryToo: false,
    twist: (scene) => ({ stays: [stayOf(scene)] }),
    async meanwhile(scene) {
      const { k3s, home } = scene;
      if (owner) Deno.chmodSync(home.root, 0o777);
      await meanwhile(stayOf(scene), async () => {
        k3s.pidFile("qemu.pid", await pretended(scene, `qemu-system-x86_64 -m 1 -pidfile ${k3s.dir}/qemu.pid`));
        await then(scene);
      });
    },
  };
}
test("the clean-up of a stop has no answer in time", {
  ...afterStages(({ k3s }) =>
    eventually(() => {
      const line = (k3s.read("lima-guard.jsonl") ?? "").split("\n").find((text) => text.includes('"stop"'));
      assert.ok(Date.now() - Date.parse(JSON.parse(line!).time) > 4000, "its time is not over yet");
    })
  ),
  runs: ["--stop --timeout 4 k3s"],
  prepare: agent,
  types: { "lima-guard --pre --lima-home HOME k3s": 0 },
  then: isGone,
});
test("a process of it lives after its stop", {
  ...afterStages(() => {}),
  runs: ["--stop k3s"],
  prepare: agent,
  types: { "lima-guard --status --lima-home HOME k3s": 1 },
});

test("a host agent lives whose lima.yaml is gone: a person ends it", {
  runs: ["--stop --all"],
  prepare: async (scene) => {
    await agent(scene);
    scene.k3s.remove("lima.yaml");
  },
  types: { "ps -ww -p AGENT": 0, "kill AGENT": 0 },
  then: isGone,
});

// ── root, and the whole machine ──

/** The twin is not for this lima-guard to see: it serves all that run. */
const withoutTwin = ({ desk }: Scene): Twist => ({
  programs: { ps: { does: "lie", pattern: `^.*${desk.twin.root}.*\\n`, by: "" } },
});
const another = ordinaryUser("lgtest2");
const MACHINE = {
  by: "root",
  twist: withoutTwin,
  env: () => ({ LIMA_HOME: "" }),
} as const;
const noHome = ({ home }: Scene) => Deno.removeSync(`${home.user}/.lima`);
test("root's --pre --all, and another user's instance runs", {
  ...MACHINE,
  runs: ["--pre --all"],
  prepare: async (scene) => {
    noHome(scene);
    await agent(scene);
  },
  types: { "sudo -H -u OWNER lima-guard --pre --lima-home HOME k3s": 0 },
});
test("root's --status --all, and a host agent of a user without an entry", {
  ...MACHINE,
  runs: ["--status --all"],
  prepare: async (scene) => {
    noHome(scene);
    const { dir } = scene.k3s;
    await pretended(scene, `limactl hostagent --pidfile ${dir}/ha.pid --socket ${dir}/ha.sock k3s`, { uid: 54_321 });
  },
  types: { "ps -ww -p PID": 0 },
});
test("root's --stop --all, and the lima-guards of two users cannot run: they are run by hand", {
  ...MACHINE,
  runs: ["--stop --all --timeout 4"],
  script: ({ home }) => `${home.root}/closed/watched.ts`,
  prepare: async (scene) => {
    noHome(scene);
    await agent(scene);
    const { desk: { folder }, home: { root }, words } = scene;
    const other = scene.use(await tempLimaHome());
    const vm = other.instance("k3s");
    other.giveTo(another!);
    scene.use(await startAgent(vm, { uid: another!.uid, gid: another!.gid }));
    words.set(other.lima, "OTHERS").set(`-u ${another!.name}`, "-u OTHER");
    Deno.mkdirSync(`${root}/closed`, { mode: 0o700 });
    for (const file of ["watched.ts", "guard.ts"]) Deno.copyFileSync(`${folder}/${file}`, `${root}/closed/${file}`);
  },
  types: {
    "sudo -H -u OWNER lima-guard --stop --all --lima-home HOME": 0,
    "sudo -H -u OTHER lima-guard --stop --lima-home OTHERS k3s": 0,
    "sudo -H -u OWNER lima-guard --stop --lima-home HOME k3s": 0,
    "sudo -H -u OTHER lima-guard --stop --all --lima-home OTHERS": 0,
  },
  then: ({ k3s }) => assert.equal(k3s.has("ha.pid"), false),
});
test("root, and an instance of a user who cannot be found out", {
  by: "root",
  runs: ["--pre k3s"],
  twist: () => ({ programs: { id: { does: "hang" } }, limitsBy: 10 }),
  types: { "ls -ld DIR": 0 },
});
test("root, and a copied instance of a user that is not here", {
  by: "root",
  runs: ["--pre k3s"],
  prepare: ({ k3s }) => {
    for (const path of [k3s.dir, `${k3s.dir}/lima.yaml`]) Deno.chownSync(path, 54_321, 54_321);
  },
  types: { "sudo chown -R USER DIR": 0 },
  then: isClear,
});

/** launchd's jobs. */

import assert from "node:assert/strict";
import { meanwhile } from "../helpers/guard_with.ts";
import { eventually } from "../helpers/mod.ts";
import { type Keys, writePlist } from "../launchd/plist.ts";
import { give, owner } from "./desk.ts";
import { type Row, type Scene } from "./rows.ts";
import { agent, NO_MAC } from "./scenes.ts";

export const rows = new Map<string, Row>();
const test = (title: string, row: Row) => rows.set(title, row);

/** Writes the plist of a job of the owner's that runs the instance by lima-guard. Returns its path. */
function plist(scene: Scene, { label = "io.lima-vm.autostart.k3s", folder = "", ...more }: Partial<Keys> & Place = {}) {
  const { home, k3s, launchd, desk } = scene;
  const dir = folder || `${home.user}/Library/LaunchAgents`;
  Deno.mkdirSync(dir, { recursive: true });
  const keys: Keys = {
    Label: label,
    ProgramArguments: [
      `${desk.folder}/bin/lima-guard`,
      "--run",
      "k3s",
      "--",
      home.limactl,
      "start",
      "k3s",
      "--foreground",
    ],
    EnvironmentVariables: {
      LIMA_HOME: home.lima,
      HOME: home.user,
      PATH: `${launchd!.bin}:/usr/bin:/bin`,
      NO_COLOR: "1",
    },
    WorkingDirectory: k3s.dir,
    StandardErrorPath: "launchd.stderr.log",
    ExitTimeOut: 60,
    ...more,
  };
  const path = `${dir}/${label}.plist`;
  Deno.writeTextFileSync(path, writePlist(keys as never));
  if (folder === "") give(home);
  scene.words.set(path, `PLIST`);
  return path;
}
interface Place {
  readonly label?: string;
  readonly folder?: string;
}
const DOMAIN = `gui/${owner?.uid ?? Deno.uid()}`;
const TARGET = `${DOMAIN}/io.lima-vm.autostart.k3s`;
const runsNow = (scene: Scene, target = TARGET) =>
  eventually(() => {
    const { stdout = "" } = scene.launchd!.control(["print", target]);
    assert.match(stdout, /\tpid = \d+/);
  });

test("a job is not loaded: it is", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => plist(scene, { RunAtLoad: true }),
  types: { "launchctl bootstrap gui/UID PLIST": 0 },
  then: runsNow,
});
test("a job is disabled: it is enabled, and loaded", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => {
    plist(scene, { RunAtLoad: true });
    scene.launchd!.control(["disable", TARGET]);
  },
  types: {
    "launchctl enable gui/UID/io.lima-vm.autostart.k3s": 0,
    "launchctl bootstrap gui/UID PLIST": 0,
  },
  then: runsNow,
});
test("a job with a short time limit: --install", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => plist(scene, { ExitTimeOut: 5 }),
  types: { "lima-guard --install --lima-home HOME k3s": NO_MAC, "launchctl bootstrap gui/UID PLIST": 0 },
});
test("two jobs: the one at login is removed", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => {
    plist(scene, { label: "io.lima-vm.other" });
    scene.launchd!.bootstrap(DOMAIN, plist(scene));
    scene.launchd!.bootstrap(DOMAIN, plist(scene, { label: "io.lima-vm.other" }));
  },
  types: { "LIMA_HOME=HOME limactl autostart disable k3s": 0 },
  then: ({ home }) =>
    assert.deepEqual([...Deno.readDirSync(`${home.user}/Library/LaunchAgents`)].map(({ name }) => name), [
      "io.lima-vm.other.plist",
    ]),
});
test("an instance that was started by hand beside its job: it is stopped, and the job started", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: async (scene) => {
    scene.launchd!.bootstrap(DOMAIN, plist(scene));
    await agent(scene);
  },
  types: {
    "lima-guard --stop --lima-home HOME k3s": 0,
    "launchctl kickstart gui/UID/io.lima-vm.autostart.k3s": 0,
  },
  then: runsNow,
});
test("root: a job of the system's is not loaded", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => {
    const folder = "/Library/LaunchDaemons";
    const path = plist(scene, { folder, label: `io.lima-guard.test.${scene.home.root.slice(5)}`, RunAtLoad: true });
    scene.words.set(scene.home.root.slice(5), "RANDOM");
    scene.use({ [Symbol.dispose]: () => Deno.removeSync(path) });
  },
  types: { "sudo launchctl bootstrap system PLIST": 0 },
  then: (scene) => runsNow(scene, `system/io.lima-guard.test.${scene.home.root.slice(5)}`),
});
/** A job of the owner's that has an instance running. */
async function running(scene: Scene, KeepAlive: boolean): Promise<void> {
  scene.launchd!.bootstrap(DOMAIN, plist(scene, { RunAtLoad: true, KeepAlive, ThrottleInterval: 1 }));
  await eventually(() => assert.ok(scene.k3s.events().some((event) => event["running"])), { withinMs: 30_000 });
}
test("a job is stopped: it is started again", {
  hasLaunchd: true,
  runs: ["--stop k3s"],
  prepare: (scene) => running(scene, false),
  types: { "launchctl kickstart gui/UID/io.lima-vm.autostart.k3s": 0 },
  then: runsNow,
});
const beforeItsLook = ({ home }: Scene) => ({ at: "before pause 1000$", file: `${home.root}/stay` });
test("a job is stopped, and launchd starts it again: it is kept down", {
  hasLaunchd: true,
  runs: ["--stop k3s"],
  isDryToo: false,
  twist: (scene) => ({ stays: [beforeItsLook(scene)] }),
  prepare: (scene) => running(scene, true),
  async meanwhile(scene) {
    if (owner) Deno.chmodSync(scene.home.root, 0o777);
    await meanwhile(beforeItsLook(scene), async () => {
      const { pid } = await scene.launchd!.started("io.lima-vm.autostart.k3s", 2);
      await eventually(() => assert.match(scene.k3s.read("lima-guard.lock") ?? "", new RegExp(`"pid":${pid},`)));
    });
  },
  types: { "launchctl bootout gui/UID/io.lima-vm.autostart.k3s": 0 },
  then: ({ launchd }) => eventually(() => assert.notEqual(launchd!.control(["print", TARGET]).code, 0)),
});

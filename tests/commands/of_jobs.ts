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
/** sudo -H sets HOME, and the user of the tests has none with a job. */
const NO_AGENT = [1, 2];
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
  types: {
    "lima-guard --install --lima-home HOME k3s": NO_MAC,
    "launchctl bootstrap gui/UID PLIST": 0,
    "launchctl kickstart gui/UID/io.lima-vm.autostart.k3s": 0,
  },
});
test("two jobs at login: one of them is taken out", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => {
    scene.launchd!.bootstrap(DOMAIN, plist(scene));
    scene.launchd!.bootstrap(DOMAIN, plist(scene, { label: "io.lima-vm.other" }));
  },
  types: { "launchctl bootout gui/UID/io.lima-vm.other": 0, "ls -ld PLIST": 0 },
  then: (scene) => assert.equal(scene.launchd!.control(["print", `${DOMAIN}/io.lima-vm.other`]).code, 113),
});
/** The plist of a job of the system's. */
function daemon(scene: Scene, more: Parameters<typeof plist>[1] = {}, number = ""): string {
  const label = `io.lima-guard.test${number}.${scene.home.root.slice(5)}`;
  const { UserName = owner!.name, ...others } = more;
  const user = UserName === "" ? {} : { UserName };
  const path = plist(scene, { folder: "/Library/LaunchDaemons", label, ...user, ...others });
  scene.words.set(label, `DAEMON${number}`);
  scene.use({ [Symbol.dispose]: () => Deno.removeSync(path) });
  return path;
}
test("two jobs, at boot and at login: the one at login is removed", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => {
    scene.launchd!.bootstrap("system", daemon(scene));
    scene.launchd!.bootstrap(DOMAIN, plist(scene));
  },
  types: { "sudo -H -u OWNER LIMA_HOME=HOME limactl autostart disable k3s": NO_AGENT },
});
test("two jobs, at boot and at login, of which Lima knows none: the one at login is taken out", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => {
    scene.launchd!.bootstrap("system", daemon(scene));
    scene.launchd!.bootstrap(DOMAIN, plist(scene, { label: "homebrew.mxcl.k3s" }));
  },
  types: { "launchctl bootout gui/UID/homebrew.mxcl.k3s": 0, "ls -ld PLIST": 0 },
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
test("it runs beside its job, and whether lima-guard supervises it is unknown", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  twist: () => ({ locks: "other" }),
  prepare: async (scene) => {
    scene.launchd!.bootstrap(DOMAIN, plist(scene));
    await agent(scene);
    scene.k3s.write("lima-guard.lock", "");
  },
  types: { "lsof -- DIR/lima-guard.lock": 1 },
});
test("root: a job of the system's is not loaded", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => void daemon(scene, { RunAtLoad: true }),
  types: { "sudo launchctl bootstrap system PLIST": 0 },
  then: (scene) => runsNow(scene, `system/io.lima-guard.test.${scene.home.root.slice(5)}`),
});
test("a daemon without UserName: it is taken out, and its plist is looked at", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => scene.launchd!.bootstrap("system", daemon(scene, { UserName: "" })),
  types: { "sudo launchctl bootout system/DAEMON": 0, "ls -ld PLIST": 0 },
});
test("a folder of jobs cannot be listed", {
  runs: ["--status k3s"],
  prepare: ({ home, words }) => {
    words.set(home.user, "USERS");
    Deno.mkdirSync(`${home.user}/Library`, { recursive: true });
    Deno.symlinkSync("LaunchAgents", `${home.user}/Library/LaunchAgents`);
  },
  types: { "ls -ld USERS/Library/LaunchAgents": 0 },
});
test("two daemons: one of them is taken out", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => [1, 2].map((n) => scene.launchd!.bootstrap("system", daemon(scene, {}, String(n)))),
  types: { "sudo launchctl bootout system/DAEMON2": 0, "ls -ld PLIST": 0 },
});
test("root, HOME kept as sudo of macOS does: the job is its user's", {
  by: "root",
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: (scene) => plist(scene, { RunAtLoad: true }),
  types: { "launchctl bootstrap gui/UID PLIST": 0 },
});
for (const session of [112, 113, 125]) {
  test(`no user is logged in (${session}), the job is disabled: it is enabled, and nothing is started`, {
    hasLaunchd: true,
    runs: ["--status k3s"],
    prepare: (scene) => {
      plist(scene, { RunAtLoad: true });
      const state = `${scene.home.root}/launchd/state`;
      Deno.removeSync(`${state}/sessions/${owner?.uid ?? Deno.uid()}`);
      Deno.writeTextFileSync(`${state}/conf`, `session=${session}\n`);
      scene.launchd!.control(["disable", TARGET]);
    },
    types: { "launchctl enable gui/UID/io.lima-vm.autostart.k3s": 0 },
  });
}
test("started by hand, and a job that does not start when it is loaded", {
  hasLaunchd: true,
  runs: ["--status k3s"],
  prepare: async (scene) => {
    plist(scene);
    await agent(scene);
  },
  types: {
    "lima-guard --stop --lima-home HOME k3s": 0,
    "launchctl bootstrap gui/UID PLIST": 0,
    "launchctl kickstart gui/UID/io.lima-vm.autostart.k3s": 0,
  },
  then: runsNow,
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

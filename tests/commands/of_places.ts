/** Disks, networks, names, homes and owners. */

import assert from "node:assert/strict";
import { IMPOSSIBLE_PID, isAlive, NO_ORDINARY_USER, startAgent } from "../helpers/mod.ts";
import { asOwner, give, owner } from "./desk.ts";
import { type Row, runAs, type Scene } from "./rows.ts";
import { agent, folder, isClear, isGone, pretended } from "./scenes.ts";

export const rows = new Map<string, Row>();
const test = (title: string, row: Row) => rows.set(title, row);

// ── disks and networks ──

test("a disk is in use by another instance: that one is stopped", {
  isRootsToo: true,
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    const { home, k3s, use } = scene;
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    const other = home.instance("other");
    home.disk("data", { inUseBy: other.dir });
    give(home);
    use(await startAgent(other, asOwner));
  },
  types: { "lima-guard --stop --lima-home HOME other": 0 },
  then: async (scene) => {
    const [report] = (await runAs(scene, "--status other")).json().instances;
    assert.equal(report.state, "stopped");
  },
});

/** A process that no PID file names has a disk of the instance open. */
async function opensDisk(scene: Scene): Promise<void> {
  const { home, k3s } = scene;
  k3s.write("lima.yaml", "additionalDisks:\n- data\n");
  const { dir } = home.disk("data", { inUseBy: k3s.dir });
  give(home);
  await pretended(scene, "qemu-system-x86_64", { opens: `${dir}/datadisk` });
}

test("a process has a disk open: just that is ended", {
  isRootsToo: true,
  runs: ["--pre k3s"],
  twist: () => ({ hurry: true }),
  prepare: opensDisk,
  types: { "ps -ww -p PID": 0, "kill PID": 0 },
  then: async (scene) => {
    await isGone(scene);
    await isClear(scene);
  },
});

test("lsof gives no answer about a disk", {
  runs: ["--pre k3s"],
  twist: () => ({ programs: { lsof: { does: "be killed" } } }),
  prepare: opensDisk,
  types: { "lsof -- HOME/_disks/data/datadisk": 0 },
});

test("disks and networks cannot be listed", {
  runs: ["--pre k3s"],
  prepare: ({ home }) => ["_disks", "_networks"].map((name) => Deno.mkdirSync(`${home.lima}/${name}`, { mode: 0 })),
  types: { "ls -ld HOME/_disks": 0, "ls -ld HOME/_networks": 0 },
});

test("usernet answers, and no PID file names it", {
  isRootsToo: true,
  folder,
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    const { home } = scene;
    const { dir } = home.network();
    give(home);
    await pretended(scene, "/opt/x/limactl usernet", { socket: `${dir}/user-v2_ep.sock` });
  },
  types: { "lsof -- HOME/_networks/user-v2/user-v2_ep.sock": 0 },
});

test(
  "a dead process is in usernet's PID file, and its socket answers: who is at the other end is asked, not that PID",
  {
    isRootsToo: true,
    folder,
    runs: ["--pre k3s"],
    prepare: async (scene) => {
      const { dir } = scene.home.network("user-v2", { pid: IMPOSSIBLE_PID });
      give(scene.home);
      await pretended(scene, "/opt/x/limactl usernet", { socket: `${dir}/user-v2_ep.sock` });
    },
    types: { "lsof -- HOME/_networks/user-v2/user-v2_ep.sock": 0 },
  },
);

test("whose a disk is cannot be looked at", {
  runs: ["--pre k3s"],
  prepare: ({ home, k3s }) => {
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    home.disk("data", { inUseBy: `${home.root}/closed/other` });
    give(home);
    Deno.mkdirSync(`${home.root}/closed`, { mode: 0 });
  },
  types: { "ls -ld ROOT/closed": 0 },
});

/** `networks.yaml` with a folder of PID files of socket_vmnet, in which one names a process. */
async function vmnet(scene: Scene, command: string) {
  const { home } = scene;
  const run = `${home.root}/run`;
  Deno.mkdirSync(run);
  Deno.writeTextFileSync(`${run}/shared_socket_vmnet.pid`, `${await pretended(scene, command)}\n`);
  Deno.writeTextFileSync(`${home.lima}/_config/networks.yaml`, `paths:\n  varRun: ${run}\n`);
}
test("socket_vmnet's PID file names another program: root removes it", {
  isRootsToo: true,
  runs: ["--pre k3s", "--status k3s"],
  prepare: (scene) => vmnet(scene, "/usr/libexec/other"),
  types: { "sudo rm ROOT/run/shared_socket_vmnet.pid": 0 },
  then: async (scene) => {
    await isClear(scene);
    for (const [value, word] of scene.words) assert.ok(word !== "PID" || isAlive(Number(value)));
  },
});
test("socket_vmnet's PID file names a script that may run it", {
  runs: ["--pre k3s"],
  prepare: (scene) => vmnet(scene, "/bin/sh /opt/bin/start-socket_vmnet.sh"),
  types: { "ps -ww -p PID": 0 },
});
test("socket_vmnet's PID file, and ps gives no answer", {
  runs: ["--pre k3s"],
  twist: () => ({ programs: { ps: { does: "be killed" } } }),
  prepare: (scene) => vmnet(scene, "/opt/bin/socket_vmnet"),
  types: { "ps -ww -p PID": 0 },
});

// ── names, homes and owners ──

test("a name is misspelt: the one that is meant", {
  runs: ["--pre k3ss", "--stop k3ss", "--status k3ss", "--run k3ss -- true"],
  types: {
    "ls -la HOME": 0,
    "lima-guard --pre --lima-home HOME k3s": 0,
    "lima-guard --stop --lima-home HOME k3s": 0,
    "lima-guard --status --lima-home HOME k3s": 0,
  },
});
test("a name in the wrong case: the one on the disk", {
  runs: ["--pre K3S", "--stop K3S", "--status K3S", "--run K3S -- true"],
  twist: () => ({ foldsCase: true }),
  types: {
    "lima-guard --pre --lima-home HOME k3s": 0,
    "lima-guard --stop --lima-home HOME k3s": 0,
    "lima-guard --status --lima-home HOME k3s": 0,
  },
});
test("no name is like it", { runs: ["--pre qqqqqq", "--stop qqqqqq"], types: { "ls -la HOME": 0 } });
test("the home is not there", {
  runs: ["--pre k3s", "--pre --all"],
  env: ({ home }) => ({ LIMA_HOME: `${home.lima}/none` }),
  types: { "ls -la HOME": 0 },
});
test("the home is the top of a volume", {
  runs: ["--pre k3s"],
  prepare: ({ home }) => Deno.mkdirSync(`${home.lima}/lost+found`),
  types: {},
});
test("the home cannot be entered", {
  runs: ["--pre k3s", "--status k3s"],
  prepare: ({ home }) => Deno.chmodSync(home.lima, 0o600),
  types: { "ls -ld HOME": 0 },
});
test("the home can be entered and not listed", {
  runs: ["--pre --all", "--status"],
  prepare: ({ home }) => Deno.chmodSync(home.lima, 0o311),
  types: { "ls -ld HOME": 0 },
});
test("all instances, and ps gives no answer", {
  runs: ["--status"],
  twist: () => ({ programs: { ps: { does: "be killed" } } }),
  prepare: ({ home }) => Deno.removeSync(`${home.user}/.lima`),
  env: () => ({ LIMA_HOME: "" }),
  types: { "ps -ww -A -o pid,command": 0 },
});
test("several homes have the name: each is named", {
  runs: ["--pre k3s", "--status k3s"],
  prepare: ({ home, words }) => {
    Deno.removeSync(`${home.user}/.lima`);
    for (const folder of [".colima/_lima", "Library/Application Support/rancher-desktop/lima"]) {
      Deno.mkdirSync(`${home.user}/${folder}`, { recursive: true });
      new Deno.Command("cp", { args: ["-R", `${home.lima}/k3s`, `${home.user}/${folder}/`] }).outputSync();
    }
    give(home);
    words.set(home.user, "USERS");
  },
  env: () => ({ LIMA_HOME: "" }),
  types: {
    "lima-guard --status --lima-home USERS/.colima/_lima k3s": 0,
    "lima-guard --status --lima-home USERS/Library/Application Support/rancher-desktop/lima k3s": 0,
    "lima-guard --pre --lima-home USERS/.colima/_lima k3s": 0,
    "lima-guard --pre --lima-home USERS/Library/Application Support/rancher-desktop/lima k3s": 0,
  },
});
test("root, and another user's instance: as that user", {
  by: "root",
  runs: ["--pre k3s", "--stop k3s", "--run k3s -- true"],
  types: {
    "sudo -H -u OWNER lima-guard --pre --lima-home HOME k3s": 0,
    "sudo -H -u OWNER lima-guard --stop --lima-home HOME k3s": 0,
    "sudo -H -u OWNER lima-guard --run --lima-home HOME k3s -- COMMAND": 0,
  },
});
test("a user, and root's instance: as root", {
  runs: ["--pre k3s", "--stop k3s"],
  prepare: ({ k3s }) => Deno.chownSync(k3s.dir, 0, 0),
  isTypedBy: "root",
  types: {
    "sudo -H -u root lima-guard --pre --lima-home HOME k3s": 0,
    "sudo -H -u root lima-guard --stop --lima-home HOME k3s": 0,
  },
});
for (const what of ["dir", "lima"] as const) {
  test(`a copied ${what === "lima" ? "home" : "instance"} of a user that is not here`, {
    runs: ["--pre k3s", "--stop k3s"],
    prepare: ({ home, k3s }) => {
      for (const path of [k3s.dir, `${k3s.dir}/lima.yaml`, ...what === "lima" ? [home.lima] : []]) {
        Deno.chownSync(path, 54_321, 54_321);
      }
    },
    types: { [`sudo chown -R lgtest ${what === "lima" ? "HOME" : "DIR"}`]: 0 },
    then: isClear,
  });
}

test("an instance of ~/.lima, and the shell has another LIMA_HOME: it is named with its home", {
  isOrdinaryHome: true,
  runs: ["--pre k3s"],
  async prepare(scene) {
    await agent(scene);
    scene.k3s.remove("ha.sock");
  },
  types: { "lima-guard --stop --lima-home HOME k3s": 0 },
});
test("what is not understood: the help", {
  runs: ["--pree k3s", "--pre=k3s", "--pre", "", "--wait=3 --pre --stop k3s", "--pre --on-event /none k3s"],
  types: { "lima-guard --help": 0 },
});

test("root misspells the name of another user's instance", {
  by: "root",
  runs: ["--pre k3ss"],
  types: { "ls -la HOME": 0, "sudo -H -u OWNER lima-guard --pre --lima-home HOME k3s": 0 },
});

/** A disk of the instance that a folder without an instance uses. */
const folderUses = (name: string) => ({ home, k3s }: Scene) => {
  k3s.write("lima.yaml", "additionalDisks:\n- data\n");
  Deno.mkdirSync(`${home.lima}/${name}`);
  home.disk("data", { inUseBy: `${home.lima}/${name}` });
  give(home);
};
for (const name of ["no name", "plain"]) {
  test(`a disk is in use by a folder without an instance: ${name}`, {
    runs: ["--pre k3s"],
    prepare: folderUses(name),
    types: { [`ls -ld HOME/${name}`]: 0 },
  });
}
test("a disk is in use by an instance of another user: that one's lima-guard is named", {
  runs: ["--pre k3s"],
  isTypedBy: "root",
  prepare: ({ home, k3s }) => {
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    const dir = `${home.root}/else/other`;
    Deno.mkdirSync(dir, { recursive: true });
    Deno.writeTextFileSync(`${dir}/lima.yaml`, "x: 1\n");
    home.disk("data", { inUseBy: dir });
  },
  whyNot: owner === null ? NO_ORDINARY_USER : undefined,
  types: { "sudo -H -u root lima-guard --stop --lima-home ROOT/else other": 0 },
});
test("a disk is in use by an instance whose user is not known here", {
  by: "root",
  runs: ["--status k3s"],
  prepare: ({ home, k3s }) => {
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    const { dir } = home.instance("other");
    home.disk("data", { inUseBy: dir });
    give(home);
    Deno.chownSync(dir, 54_321, 54_321);
  },
  types: { "ls -ld HOME/other": 0 },
});
test("ha.pid names a look-alike of root's: sudo ends it", {
  runs: ["--pre k3s"],
  prepare: async (scene) => {
    const { dir } = scene.k3s;
    const command = `limactl hostagent --pidfile ${dir}/ha.pid --socket ${dir}/ha.sock k3s`;
    scene.k3s.pidFile("ha.pid", await pretended(scene, command, { uid: 0 }));
  },
  whyNot: owner === null ? NO_ORDINARY_USER : undefined,
  types: { "ps -ww -p PID": 0, "sudo kill PID": 0 },
  then: isGone,
});
test("a link to an instance of a user that is not known here: what it leads to is given away", {
  runs: ["--pre k3s"],
  prepare: ({ home, k3s }) => {
    const volume = `${home.root}/volume`;
    Deno.mkdirSync(volume);
    Deno.renameSync(k3s.dir, `${volume}/k3s`);
    Deno.symlinkSync(`${volume}/k3s`, k3s.dir);
    for (const path of [`${volume}/k3s`, `${volume}/k3s/lima.yaml`]) Deno.chownSync(path, 54_321, 54_321);
  },
  whyNot: owner === null ? NO_ORDINARY_USER : undefined,
  types: { "sudo chown -R lgtest ROOT/volume/k3s": 0 },
  then: isClear,
});
test("a disk of lima.yaml is missing, and there is no folder of disks", {
  runs: ["--pre k3s"],
  prepare: ({ k3s }) => k3s.write("lima.yaml", "additionalDisks:\n- data\n"),
  types: { "ls -la HOME": 0 },
});
test("LIMA_HOME and the folder above it are not there", {
  runs: ["--pre k3s"],
  env: ({ home }) => ({ LIMA_HOME: `${home.lima}/none/none` }),
  types: { "ls -la HOME": 0 },
});
for (
  const [what, path, shut] of [
    ["the instance", "DIR", ({ k3s }: Scene) => k3s.dir],
    ["the folder of the configuration", "HOME/_config", ({ home }: Scene) => `${home.lima}/_config`],
    ["a disk", "HOME/_disks/data", ({ home }: Scene) => home.disk("data").dir],
  ] as const
) {
  test(`${what} may not be entered: what can be seen is shown`, {
    runs: ["--pre k3s"],
    prepare: (scene) => {
      const dir = shut(scene);
      if (what.includes("configuration")) Deno.writeTextFileSync(`${dir}/networks.yaml`, "");
      give(scene.home);
      Deno.chmodSync(dir, 0);
    },
    types: { [`ls -ld ${path}`]: 0 },
  });
}
test("a disk lock is a relative link to another instance: that one has it", {
  runs: ["--pre k3s"],
  prepare: ({ home, k3s }) => {
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    home.instance("other");
    home.disk("data", { inUseBy: "../../other" });
    give(home);
  },
  types: { "lima-guard --stop --lima-home HOME other": 0 },
});
test("an instance is gone, and its disk is still locked", {
  runs: ["--pre gone"],
  prepare: ({ home }) => {
    home.disk("data", { inUseBy: `${home.lima}/gone` });
    give(home);
  },
  types: { "ls -la HOME": 0, "LIMA_HOME=HOME limactl disk unlock data": 0 },
  then: ({ home }) => assert.throws(() => Deno.lstatSync(`${home.lima}/_disks/data/in_use_by`)),
});
test("LIMA_HOME may be entered and not listed", {
  runs: ["--pre k3s"],
  prepare: ({ home }) => Deno.chmodSync(home.lima, 0o311),
  types: { "ls -ld HOME": 0 },
});
test("a disk's lock is a folder: it is moved away", {
  runs: ["--pre k3s"],
  prepare: ({ home, k3s }) => {
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    Deno.mkdirSync(`${home.disk("data").dir}/in_use_by`);
    give(home);
  },
  types: { "mv HOME/_disks/data/in_use_by HOME/_disks/data/in_use_by.away": 0 },
  then: isClear,
});

/** Processes and files of an instance. */

import assert from "node:assert/strict";
import { IMPOSSIBLE_PID, readOnlyDir, whyNoMount } from "../helpers/mod.ts";
import { give, owner } from "./desk.ts";
import { type Row } from "./rows.ts";
import { agent, folder, isClear, isGone, isRunning, pretended, renamed } from "./scenes.ts";

export const rows = new Map<string, Row>();
const test = (title: string, row: Row) => rows.set(title, row);

test("a host agent that does not answer any more: it is ended", {
  isRootsToo: true,
  runs: ["--pre k3s", "--status k3s"],
  async prepare(scene) {
    await agent(scene);
    scene.k3s.remove("ha.sock");
  },
  types: { "lima-guard --stop --lima-home HOME k3s": 0 },
  then: ({ k3s }) => assert.deepEqual(k3s.files().filter((file) => /pid$/.test(file)), []),
});

test("a host agent that is stopped by a signal: it continues", {
  isRootsToo: true,
  runs: ["--status k3s"],
  prepare: async (scene) => (await agent(scene)).signal("SIGSTOP"),
  types: { "kill -CONT AGENT": 0 },
  then: isRunning,
});
test("a PID file names what may be its renamed host agent: just that is ended", {
  isRootsToo: true,
  runs: ["--pre k3s", "--stop k3s"],
  prepare: async (scene) => void scene.k3s.pidFile("ha.pid", await pretended(scene, renamed(scene.k3s))),
  types: { "ps -ww -p PID": 0, "kill PID": 0 },
  then: isGone,
});

test("a host agent may be there under another name, and no PID file names it: just that is ended", {
  runs: ["--pre k3s"],
  prepare: async (scene) => {
    scene.k3s.pidFile("ha.pid", "garbage");
    await pretended(scene, renamed(scene.k3s).replace(" k3s", ` --socket ${scene.k3s.dir}/ha.sock k3s`));
  },
  types: { "ps -ww -p PID": 0, "kill PID": 0 },
  then: isGone,
});

test("a PID file is a directory, and ps prints nothing to be believed", {
  runs: ["--pre k3s"],
  twist: () => ({ programs: { ps: { does: "answer", stdout: "garbage\n" } } }),
  prepare: ({ k3s }) => {
    Deno.mkdirSync(k3s.path("ha.pid"));
    k3s.pidFile("vz.pid", "garbage");
  },
  types: { "ls -ld DIR/ha.pid": 0, "ps -ww -A -o pid,command": 0 },
});

test("a socket of the instance answers, and a process names its files", {
  isRootsToo: true,
  folder,
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    await pretended(scene, `/usr/bin/python3 ${scene.k3s.dir}/x`, { socket: scene.k3s.path("ha.sock") });
  },
  types: { "lsof -- DIR/ha.sock": 0, "ps -ww -p PID": 0 },
});

test("ha.sock is a link to itself", {
  runs: ["--pre k3s", "--status k3s"],
  prepare: ({ k3s }) => Deno.symlinkSync("ha.sock", k3s.path("ha.sock")),
  types: { "ls -ld DIR/ha.sock": 0 },
});
test("a stale file in a folder that is closed to its owner", {
  runs: ["--pre k3s", "--status k3s"],
  prepare: ({ k3s }) => {
    k3s.write("lima-guard.lock", "");
    k3s.pidFile("vz.pid", IMPOSSIBLE_PID);
    if (owner) {
      for (const file of ["vz.pid", "lima-guard.lock"]) Deno.chownSync(k3s.path(file), owner.uid, owner.gid);
    }
    Deno.chmodSync(k3s.dir, 0o555);
  },
  types: { "chmod u+rwx DIR": 0 },
  then: isClear,
});

test("a stale file in a folder of another user", {
  runs: ["--pre k3s"],
  prepare: ({ home, k3s }) => {
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    home.disk("data", { inUseBy: `${home.lima}/gone` });
  },
  types: { "sudo chown -R UID HOME/_disks/data": 0 },
  then: isClear,
});

test("a stale file that cannot be removed for another reason", {
  whyNot: whyNoMount(),
  runs: ["--pre k3s"],
  prepare: (scene) => {
    const network = scene.home.network("user-v2", { pid: IMPOSSIBLE_PID });
    give(scene.home);
    scene.use(readOnlyDir(network.dir));
  },
  types: { "ls -ld HOME/_networks/user-v2 HOME/_networks/user-v2/usernet_user-v2.pid": 0 },
});

test("the folder of the instance can be entered and not listed", {
  runs: ["--pre k3s"],
  prepare: ({ k3s }) => Deno.chmodSync(k3s.dir, 0o311),
  types: { "ls -ld DIR": 0 },
});

test("of another boot", {
  isRootsToo: true,
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    await agent(scene);
    scene.k3s.write("boot-session.tmp", "11111111-2222-3333-4444-555555555555\n");
  },
  types: { "lima-guard --stop --lima-home HOME k3s": 0 },
});

test("lima.yaml is empty", {
  isRootsToo: true,
  runs: ["--pre k3s", "--status k3s"],
  prepare: ({ k3s }) => k3s.write("lima.yaml", ""),
  types: { "ls -ld DIR/lima.yaml": 0 },
});
test("lima.yaml cannot be read", {
  runs: ["--pre k3s", "--stop k3s", "--run k3s -- true", "--status k3s"],
  prepare: ({ k3s }) => Deno.chmodSync(k3s.path("lima.yaml"), 0),
  types: { "ls -ld DIR/lima.yaml": 0 },
});
test("lima.yaml is not there", {
  runs: ["--pre k3s", "--stop k3s", "--run k3s -- true", "--status k3s"],
  prepare: ({ k3s }) => k3s.remove("lima.yaml"),
  types: {},
});
test(
  "a disk is not there, a port is taken, ssh.config is a directory, networks.yaml cannot be read, its disk is lost",
  {
    isRootsToo: true,
    runs: ["--pre k3s", "--status k3s"],
    prepare: async (scene) => {
      const { home, k3s, words } = scene;
      await pretended(scene, "/usr/libexec/other", { socket: "127.0.0.1:0" });
      const [port] = [...words].find(([, word]) => word === "PORT")!;
      k3s.write("lima.yaml", `ssh:\n  localPort: ${port}\nadditionalDisks:\n- data\n`);
      Deno.mkdirSync(k3s.path("ssh.config"));
      Deno.mkdirSync(`${home.lima}/_config/networks.yaml`);
      Deno.mkdirSync(`${home.lima}/_disks`);
      Deno.mkdirSync(`${home.lima}/empty`);
      k3s.write("serial.log", "");
      k3s.remove("disk");
    },
    types: {
      "ls -la DIR": 0,
      "ls -la DIR/ssh.config": 0,
      "ls -la HOME/_disks": 0,
      "ls -ld HOME/_config/networks.yaml": 0,
      "sudo lsof -nP -iTCP:PORT -sTCP:LISTEN": 0,
    },
  },
);
test("two host agents of one instance live: both are ended", {
  runs: ["--pre k3s"],
  prepare: async (scene) => {
    const { k3s } = scene;
    await agent(scene);
    const { dir } = k3s;
    const command = `/opt/x/limactl hostagent --pidfile ${dir}/ha.pid --socket ${dir}/ha.sock k3s`;
    k3s.pidFile("vz.pid", await pretended(scene, command));
  },
  types: { "ps -ww -p AGENT,PID": 0, "lima-guard --stop --lima-home HOME k3s": 0 },
  then: isGone,
});

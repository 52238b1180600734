/**
 * The commands that lima-guard prints: typed in a shell of the person they are for, each works, and touches nothing but
 * the instance that it was printed for. See helpers/commands.ts.
 */

import assert from "node:assert/strict";
import { asOwner, Desk, holds, owner, type Row, runAs, type Scene } from "./helpers/commands.ts";
import { meanwhile, type Twist } from "./helpers/guard_with.ts";
import { asJob } from "./launchd/run.ts";
import { type Keys, writePlist } from "./launchd/plist.ts";
import {
  eventually,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  killChild,
  NO_ORDINARY_USER,
  readOnlyDir,
  startAgent,
  waitForExit,
} from "./helpers/mod.ts";

let desk: Desk;
Deno.test.beforeAll(async () => {
  desk = await Desk.open();
});
Deno.test.afterAll(async () => {
  await desk[Symbol.asyncDispose]();
});

let rows = 0;
function test(title: string, row: Row): void {
  rows++;
  Deno.test({ name: title, ignore: row.by === "root" && owner === null, fn: () => holds(desk, row) });
}

/** What --install comes to where there is no launchd. */
const NO_MAC = 1;

async function agent(scene: Scene) {
  const started = scene.use(await startAgent(scene.k3s, asOwner));
  scene.words.set(String(started.pid), "AGENT");
  return started;
}

for (const by of [undefined, "root"] as const) {
  const sudo = by === "root" ? "sudo -H -u OWNER " : "";
  test(`a host agent that boots: it is ended${by ? ", by root" : ""}`, {
    ...by ? { by } : {},
    runs: by ? ["--status k3s"] : ["--pre k3s", "--status k3s"],
    async prepare(scene) {
      await agent(scene);
      scene.k3s.remove("ha.sock");
    },
    types: { [`${sudo}lima-guard --stop --lima-home HOME k3s`]: 0 },
    then: ({ k3s }) => assert.deepEqual(k3s.files().filter((file) => /pid$/.test(file)), []),
  });
}

/** What a pretended process does: it may listen, lock a file, and be another user's. */
interface Does {
  readonly socket?: string;
  readonly opens?: string;
  readonly uid?: number | undefined;
}
const PRETENDED =
  `use IO::Socket::UNIX; use IO::Socket::INET; $SIG{PIPE} = 'IGNORE'; my ($ps, $at, $file) = @ARGV; my $s;
if ($file ne '') { open FILE, '+>>', $file or die $!; flock FILE, 2 or die $! }
if ($at =~ m{^/}) { $s = IO::Socket::UNIX->new(Local => $at, Listen => 9) or die $! }
elsif ($at ne '') { $s = IO::Socket::INET->new(LocalAddr => $at, Listen => 9) or die $! }
$0 = $ps; print STDOUT $at =~ m{^[^/]} ? $s->sockport : ''; close STDOUT;
if (!$s) { sleep 1 while 1 }
while (my $c = $s->accept) { my $l = <$c>; print $c "HTTP/1.0 200 OK\\r\\n\\r\\n{}"; close $c }`;
/** A process that looks in ps like `command` and dies of a SIGTERM. */
async function pretended(scene: Scene, command: string, { socket = "", opens = "", uid = asOwner.uid }: Does = {}) {
  const child = new Deno.Command("/usr/bin/perl", {
    args: ["-e", PRETENDED, command, socket, opens],
    env: scene.home.mark,
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
    ...uid === undefined ? {} : { uid, gid: uid },
  }).spawn();
  const port = await new Response(child.stdout).text();
  if (port !== "") scene.words.set(port, "PORT");
  scene.use({
    async [Symbol.asyncDispose]() {
      killChild(child);
      await child.status;
    },
  });
  scene.words.set(String(child.pid), "PID");
  return child.pid;
}
const renamed = ({ dir }: Instance) => `/opt/x/limactl-2.1 hostagent --pidfile ${dir}/ha.pid k3s`;
const isGone = async (scene: Scene) => {
  for (const [value, word] of scene.words) if (word === "PID") await waitForExit(Number(value));
};
/** Nothing is left that would keep the instance from its start. */
const isClear = async (scene: Scene) => {
  const { status, stdout } = await runAs(scene, "--pre k3s");
  assert.equal(status, 0, stdout);
};

for (const by of [undefined, "root"] as const) {
  const sudo = by === "root" ? "sudo -H -u OWNER " : "";
  test(`a host agent that is stopped by a signal: it continues${by ? ", by root" : ""}`, {
    ...by ? { by } : {},
    runs: by ? ["--status k3s"] : ["--pre k3s"],
    prepare: async (scene) => (await agent(scene)).signal("SIGSTOP"),
    types: { [`${sudo}kill -CONT AGENT`]: 0 },
    then: isRunning,
  });
  test(`a PID file names what may be its renamed host agent: just that is ended${by ? ", by root" : ""}`, {
    ...by ? { by } : {},
    runs: by ? ["--status k3s"] : ["--pre k3s", "--stop k3s"],
    prepare: async (scene) => void scene.k3s.pidFile("ha.pid", await pretended(scene, renamed(scene.k3s))),
    types: { "ps -ww -p PID": 0, [`${sudo}kill PID`]: 0 },
    then: isGone,
  });
}
async function isRunning(scene: Scene) {
  const { stdout, json } = await runAs(scene, "--status k3s");
  assert.equal(json().instances[0].state, "running", stdout);
}

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

// Linux's lsof reads the name of a socket to its first blank.
const folder = "a'ü;&$HOME";
test("a socket of the instance answers, and a process names its files", {
  folder,
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    await pretended(scene, `/usr/bin/python3 ${scene.k3s.dir}/x`, { socket: scene.k3s.path("ha.sock") });
  },
  types: { "lsof -- DIR/ha.sock": 0, "ps -ww -p PID": 0 },
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
  types: { "sudo chown -R USER HOME/_disks/data": 0 },
  then: isClear,
});

test("a stale file that cannot be removed for another reason", {
  runs: ["--pre k3s"],
  prepare: (scene) => {
    const network = scene.home.network("user-v2", { pid: IMPOSSIBLE_PID });
    if (owner) scene.home.giveTo(owner);
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
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    await agent(scene);
    scene.k3s.write("boot-session.tmp", "11111111-2222-3333-4444-555555555555\n");
  },
  types: { "lima-guard --stop --lima-home HOME k3s": 0 },
});

test("lima.yaml is empty", {
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
  "a disk is not there, a port is taken, ssh.config is a directory, networks and disks cannot be read, its disk is lost",
  {
    runs: ["--pre k3s", "--status k3s"],
    prepare: async (scene) => {
      const { home, k3s, words } = scene;
      await pretended(scene, "/usr/libexec/other", { socket: "127.0.0.1:0" });
      const [port] = [...words].find(([, word]) => word === "PORT")!;
      k3s.write("lima.yaml", `ssh:\n  localPort: ${port}\nadditionalDisks:\n- data\n`);
      Deno.mkdirSync(k3s.path("ssh.config"));
      Deno.mkdirSync(`${home.lima}/_config/networks.yaml`);
      Deno.mkdirSync(`${home.lima}/_disks`);
      Deno.mkdirSync(`${home.lima}/_networks`, { mode: 0 });
      Deno.mkdirSync(`${home.lima}/empty`);
      k3s.write("serial.log", "");
      k3s.remove("disk");
    },
    types: {
      "ls -la DIR": 0,
      "ls -la DIR/ssh.config": 0,
      "ls -la HOME/_disks": 0,
      "ls -ld HOME/_config/networks.yaml": 0,
      "ls -ld HOME/_networks": 0,
      "lsof -nP -iTCP:PORT -sTCP:LISTEN": 0,
    },
  },
);

// ── disks and networks ──

test("a disk is in use by another instance: that one is stopped", {
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    const { home, k3s, use } = scene;
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    const other = home.instance("other");
    home.disk("data", { inUseBy: other.dir });
    if (owner) home.giveTo(owner);
    use(await startAgent(other, asOwner));
  },
  types: { "lima-guard --stop --lima-home HOME other": 0 },
  then: async (scene) => {
    const [report] = (await runAs(scene, "--status other")).json().instances;
    assert.equal(report.state, "stopped");
  },
});

test("a process has a disk open: just that is ended", {
  runs: ["--pre k3s"],
  twist: () => ({ hurry: true }),
  prepare: async (scene) => {
    const { home, k3s } = scene;
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    const { dir } = home.disk("data", { inUseBy: k3s.dir });
    if (owner) home.giveTo(owner);
    await pretended(scene, "qemu-system-x86_64", { opens: `${dir}/datadisk` });
  },
  types: { "ps -ww -p PID": 0, "kill PID": 0 },
  then: async (scene) => {
    await isGone(scene);
    await isClear(scene);
  },
});

test("lsof gives no answer about a disk", {
  runs: ["--pre k3s"],
  twist: () => ({ programs: { lsof: { does: "be killed" } } }),
  prepare: async (scene) => {
    const { home, k3s } = scene;
    k3s.write("lima.yaml", "additionalDisks:\n- data\n");
    const { dir } = home.disk("data", { inUseBy: k3s.dir });
    if (owner) home.giveTo(owner);
    await pretended(scene, "qemu-system-x86_64", { opens: `${dir}/datadisk` });
  },
  types: { "lsof -- HOME/_disks/data/datadisk": 0 },
});

test("disks cannot be listed", {
  runs: ["--pre k3s"],
  prepare: ({ home }) => Deno.mkdirSync(`${home.lima}/_disks`, { mode: 0 }),
  types: { "ls -ld HOME/_disks": 0 },
});

test("usernet answers, and no PID file names it", {
  folder,
  runs: ["--pre k3s", "--status k3s"],
  prepare: async (scene) => {
    const { home } = scene;
    const { dir } = home.network();
    if (owner) home.giveTo(owner);
    await pretended(scene, "/opt/x/limactl usernet", { socket: `${dir}/user-v2_ep.sock` });
  },
  types: { "lsof -- HOME/_networks/user-v2/user-v2_ep.sock": 0 },
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

// ── names and homes ──

test("a name is misspelt: the one that is meant", {
  runs: ["--pre k3ss", "--stop k3ss", "--status k3ss"],
  types: {
    "ls -la HOME": 0,
    "lima-guard --pre --lima-home HOME k3s": 0,
    "lima-guard --stop --lima-home HOME k3s": 0,
    "lima-guard --status --lima-home HOME k3s": 0,
  },
});
test("a name in the wrong case: the one on the disk", {
  runs: ["--pre K3S", "--stop K3S", "--status K3S"],
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
    if (owner) home.giveTo(owner);
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

// ── launchd's jobs ──

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
  if (owner && folder === "") home.giveTo(owner);
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
for (const keeps of [false, true]) {
  test(`a job is stopped${keeps ? ", and launchd starts it again: it is kept down" : ": it is started again"}`, {
    hasLaunchd: true,
    runs: ["--stop k3s"],
    prepare: async (scene) => {
      scene.launchd!.bootstrap(DOMAIN, plist(scene, { RunAtLoad: true, KeepAlive: keeps, ThrottleInterval: 1 }));
      await eventually(() => assert.ok(scene.k3s.events().some((event) => event["running"])));
    },
    types: { [`launchctl ${keeps ? "bootout" : "kickstart"} gui/UID/io.lima-vm.autostart.k3s`]: 0 },
    then: async (scene) => {
      if (!keeps) return await runsNow(scene);
      await eventually(() => assert.notEqual(scene.launchd!.control(["print", TARGET]).code, 0));
    },
  });
}

// ── locks, and stops that do not succeed ──

test("another program has the lock: when it has ended, it is done", {
  runs: ["--pre k3s"],
  twist: () => ({ lockMs: 20 }),
  prepare: async (scene) =>
    void await pretended(scene, "/usr/libexec/other", { opens: scene.k3s.path("lima-guard.lock") }),
  types: {
    "lsof -- DIR/lima-guard.lock": 0,
    "ls -ld DIR/lima-guard.lock": 0,
    "lima-guard --pre --lima-home HOME k3s": 0,
  },
  before: (scene, command) => command.startsWith("lima-guard") ? end(scene) : undefined,
});
/** Ends the pretended process. */
async function end(scene: Scene): Promise<void> {
  for (const [value, word] of scene.words) if (word === "PID") Deno.kill(Number(value), "SIGTERM");
  await isGone(scene);
}
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
    if (owner) scene.home.giveTo(owner);
    await pretended(scene, "/usr/libexec/other", { opens: scene.k3s.path("lima-guard.lock") });
    asJob(scene.k3s, 2);
  },
  env: () => ({ XPC_SERVICE_NAME: "io.lima-vm.autostart.k3s" }),
  async meanwhile(_, guard) {
    await guard.waitForLine(/waits up to/);
    guard.signal("SIGTERM");
  },
  before: (scene, command) => command.includes("--stop") ? end(scene) : undefined,
  types: { "lima-guard --stop --lima-home HOME k3s": 0 },
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
    await eventually(() => assert.ok(scene.k3s.events().some((event) => event["running"])));
    scene.use({ [Symbol.asyncDispose]: async () => void await guard });
  },
  types: { "lima-guard --status --lima-home HOME k3s": 0 },
});
test("a host agent says that its instance is degraded", {
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
      assert.ok(Date.now() - Date.parse(JSON.parse(line!).time) > 1000, "its time is not over yet");
    })
  ),
  runs: ["--stop --timeout 1 k3s"],
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

// ── root, and the whole machine ──

/** The twin is not for this lima-guard to see: it serves all that run. */
const withoutTwin = ({ desk }: Scene): Twist => ({
  programs: { ps: { does: "lie", pattern: `^.*${desk.twin.root}.*\\n`, by: "" } },
});
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
test("root's --stop --all, and the lima-guard of a user cannot run: it is run by hand", {
  ...MACHINE,
  runs: ["--stop --all --timeout 4"],
  script: ({ home }) => `${home.root}/closed/watched.ts`,
  prepare: async (scene) => {
    noHome(scene);
    await agent(scene);
    const { desk: { folder }, home: { root } } = scene;
    Deno.mkdirSync(`${root}/closed`, { mode: 0o700 });
    for (const file of ["watched.ts", "guard.ts"]) Deno.copyFileSync(`${folder}/${file}`, `${root}/closed/${file}`);
  },
  types: {
    "sudo -H -u OWNER lima-guard --stop --all --lima-home HOME": 0,
    "sudo -H -u OWNER lima-guard --stop --lima-home HOME k3s": 0,
  },
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

// ── without LIMA_HOME, and what is not understood ──

test("an instance of ~/.lima is named without its home", {
  isOrdinaryHome: true,
  runs: ["--pre k3s"],
  async prepare(scene) {
    await agent(scene);
    scene.k3s.remove("ha.sock");
  },
  types: { "lima-guard --stop k3s": 0 },
});
test("what is not understood: the help", {
  runs: ["--pree k3s", "--pre", "", "--wait=3 --pre --stop k3s", "--pre --on-event /none k3s"],
  types: { "lima-guard --help": 0 },
});

/** Its command and the one behind it are read as one: `--pre=k3s`. */
const WITHOUT_ROW = /option\.flag/;
Deno.test({
  name: "every call in lima_guard.ts that makes a command has a row in which it is typed",
  ignore: owner === null,
  fn: () => assert.deepEqual(desk.watched.untyped().filter((call) => !WITHOUT_ROW.test(call)), []),
});

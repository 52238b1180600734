/** Root: `--stop --all` and `--status --all` serve the whole machine as its users; other roles touch nothing of theirs. */

import assert from "node:assert/strict";
import { dirname } from "node:path";
import {
  agentOf,
  eventually,
  everyonesEnv,
  type Home,
  isAlive,
  NO_ORDINARY_USER,
  ordinaryUser,
  runGuard,
  spawnGuard,
  startAgent,
  startBystander,
  tempLimaHome,
} from "./helpers/mod.ts";
import { guardWith } from "./helpers/guard_with.ts";

const zoe = ordinaryUser();
const yan = ordinaryUser("lgtest2");

function asRoot(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: zoe === null ? `${name} (${NO_ORDINARY_USER})` : name, ignore: zoe === null, fn });
}

interface Report {
  name: string;
  status: number;
  state: string;
  home?: string;
  owner?: string;
  blockers: { what: string; because: string; hint?: string }[];
}

asRoot("root's --stop --all stops the instances of two users, and --status --all shows them", async () => {
  await using one = await tempLimaHome();
  await using two = await tempLimaHome();
  await using root = await tempLimaHome();
  await using zoes = await agentOf(one.instance("k3s"), zoe!);
  await using yans = await agentOf(two.instance("k3s"), yan!);
  for (const home of [one, two]) Deno.chmodSync(home.root, 0o755);
  const env = everyonesEnv(root);
  const shown: Report[] = (await runGuard(root, ["--status", "--all", "--json"], { env })).json().instances;
  const owners = (report: Report[]) => report.map((t) => [t.owner, t.home, t.name].join(" ")).sort();
  const expected = [`${zoe!.name} ${one.lima} k3s`, `${yan!.name} ${two.lima} k3s`].sort();
  assert.deepEqual(owners(shown), expected);
  assert.deepEqual(shown.map((t) => t.state), ["running", "running"]);
  const { status, json, stderr } = await runGuard(root, ["--stop", "--all", "--json", "--timeout", "20"], { env });
  assert.deepEqual([status, owners(json().instances)], [0, expected], stderr);
  assert.deepEqual([zoes.isAlive(), yans.isAlive()], [false, false]);
  for (const [home, user] of [[one, zoe], [two, yan]] as const) {
    const info = Deno.statSync(`${home.lima}/k3s/lima-guard.jsonl`);
    assert.deepEqual([info.uid, info.gid], [user!.uid, user!.gid], "its files stay its owner's");
  }
  const text = await runGuard(root, ["--stop", "--all"], { env });
  assert.deepEqual(
    [text.status, text.stdout],
    [0, "no instance\n"],
    "nothing lives any more, and no home is left to name",
  );
});

asRoot("root's --status --all --wait waits for the instances of users", async () => {
  await using one = await tempLimaHome();
  await using root = await tempLimaHome();
  const k3s = one.instance("k3s");
  await using agent = await agentOf(k3s, zoe!);
  Deno.chmodSync(one.root, 0o755);
  k3s.remove("vz.pid");
  const env = everyonesEnv(root);
  const late = await runGuard(root, ["--status", "--all", "--wait", "2"], { env });
  assert.equal(late.status, 75, late.stdout);
  await using waiting = spawnGuard(root, ["--status", "--all", "--json", "--wait", "60"], { env });
  k3s.pidFile("vz.pid", agent.pid);
  const { status, stdout, json } = await waiting.result();
  assert.equal(status, 0, stdout);
  assert.deepEqual(json().instances.map((t: Report) => [t.name, t.state]), [["k3s", "running"]]);
});

asRoot("root's --stop --all has a name for a home in the summary", async () => {
  await using one = await tempLimaHome();
  await using root = await tempLimaHome();
  await using agent = await agentOf(one.instance("k3s"), zoe!);
  Deno.chmodSync(one.root, 0o755);
  const { status, stdout } = await runGuard(root, ["--stop", "--all", "--timeout", "20"], { env: everyonesEnv(root) });
  assert.equal(status, 0, stdout);
  assert.match(stdout, new RegExp(`^k3s: of ${zoe!.name}, in ${one.lima}: stopped `));
  assert.equal(agent.isAlive(), false);
});

asRoot("a lima-guard that hangs is ended with the budget, and its home is unknown", async () => {
  await using one = await tempLimaHome();
  await using root = await tempLimaHome();
  await using agent = await agentOf(one.instance("k3s"), zoe!);
  Deno.chmodSync(one.root, 0o755);
  await using guard = spawnGuard(root, ["--stop", "--all", "--json", "--timeout", "3"], { env: everyonesEnv(root) });
  const child = await eventually(() => {
    const { stdout } = new Deno.Command("ps", { args: ["-u", String(zoe!.uid), "-ww", "-o", "pid=,args="] })
      .outputSync();
    const lines = new TextDecoder().decode(stdout).split("\n");
    const row = lines.find((line) => / --stop --all /.test(line) && line.includes(one.lima) && !/\/bin\/sh/.test(line));
    assert.ok(row, lines.join("\n"));
    return Number(row.trim().split(" ", 1)[0]);
  });
  Deno.kill(child, "SIGSTOP");
  const result = await guard.result({ timeoutMs: 20_000 });
  assert.equal(isAlive(child), false);
  const report: Report[] = result.json().instances;
  assert.ok(report.some((t) => t.home === one.lima && t.state === "unknown" && t.status === 75), result.stdout);
  assert.ok(report.some((t) => t.name === "k3s" && t.status === 1 && /still lives/.test(t.blockers[0]!.because)));
  assert.equal(result.status, 1);
  assert.ok(agent.isAlive());
});

asRoot("root's --status of a user's instance whose lima.yaml is gone says that it lives", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  home.giveTo(zoe!);
  Deno.chmodSync(home.root, 0o755);
  await using agent = await startAgent(k3s, { uid: zoe!.uid, gid: zoe!.gid });
  k3s.remove("lima.yaml");
  const { status, json, stdout } = await runGuard(home, ["--status", "--json", "k3s"]);
  const [report] = json().instances;
  assert.deepEqual([status, report.state], [1, "running"], stdout);
  assert.match(report.blockers[0].because, new RegExp(`PID ${agent.pid} of ${zoe!.name} still lives`));
  assert.match(report.blockers[0].hint, new RegExp(`sudo -H -u ${zoe!.name} kill ${agent.pid}$`));
});

asRoot("Ctrl-C at root's --stop --all skips a stage of the users' stops too", async () => {
  await using one = await tempLimaHome();
  await using root = await tempLimaHome();
  const k3s = one.instance("k3s", { conf: { stop: "hang" } });
  one.giveTo(zoe!);
  Deno.chmodSync(one.root, 0o755);
  await using agent = await startAgent(k3s, { uid: zoe!.uid, gid: zoe!.gid });
  await using guard = spawnGuard(root, ["--stop", "--all", "--json", "--timeout", "60"], { env: everyonesEnv(root) });
  const stages = () => (k3s.read("lima-guard.jsonl") ?? "").split("\n").filter((line) => line.includes('"stage"'));
  await eventually(() => assert.match(k3s.read("lima-guard.jsonl") ?? "", /"event":"stop"/));
  for (let signals = 0; agent.isAlive() && signals < 10; signals++) {
    const before = stages().length;
    guard.signal("SIGINT");
    // What comes within a second is an echo.
    const sent = performance.now();
    await eventually(() => assert.ok(stages().length > before || performance.now() - sent > 1200));
  }
  const { status, json, stdout } = await guard.result({ timeoutMs: 40_000 });
  const [report] = json().instances;
  assert.deepEqual([status, report.stage], [0, "killed"], stdout);
  assert.ok(report.steps.some((s: { outcome: string }) => s.outcome === "skipped by a signal"), stdout);
});

asRoot("a user without an entry in the user database is no reason to answer 0", async () => {
  await using home = await tempLimaHome();
  const dir = `${home.root}/VM/k3s`;
  const command = ["limactl", "hostagent", "--pidfile", `${dir}/ha.pid`, "--socket", `${dir}/ha.sock`, "k3s"];
  const env = everyonesEnv(home);
  await using agent = await startBystander(home, { command, uid: 54_321, gid: 54_321 });
  const { status, json } = await runGuard(home, ["--stop", "--all", "--json"], { env });
  const [report] = json().instances as Report[];
  assert.deepEqual([status, report!.name, report!.status], [75, "k3s", 75]);
  assert.match(report!.blockers[0]!.because, /uid 54321 has no entry in the user database/);
  agent.assertAlive();
});

asRoot("a user who cannot be found out is not a user who is not there: unknown", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  home.giveTo(zoe!);
  const id = guardWith({ programs: { id: { does: "be killed" } } });
  const { status, stdout } = await runGuard(home, ["--pre", "k3s"], id);
  assert.deepEqual([status, /could not be found out: .*ls -ld/.test(stdout)], [75, true], stdout);
  const dir = `${home.root}/VM/k3s`;
  const command = ["limactl", "hostagent", "--pidfile", `${dir}/ha.pid`, "--socket", `${dir}/ha.sock`, "k3s"];
  await using _agent = await startBystander(home, { command, uid: zoe!.uid, gid: zoe!.gid });
  const getent = guardWith({ programs: { getent: { does: "be killed" } } });
  const all = await runGuard(home, ["--stop", "--all"], { ...getent, env: { ...getent.env, ...everyonesEnv(home) } });
  assert.match(all.stdout, new RegExp(`uid ${zoe!.uid} has no user that was found out`));
});

asRoot(
  "a driver that lost its host agent, in a home that is not there, keeps --stop --all from answering 0",
  async () => {
    for (
      const tail of [
        ["qemu-system-x86_64", "-m", "1", "-pidfile", "DIR/qemu.pid"],
        ["krunkit", "--device", "virtio-blk,path=DIR/diffdisk"],
        ["lima-driver-x", "--inst-dir", "DIR"],
      ]
    ) {
      await using home = await tempLimaHome();
      const lima = `${home.root}/an unlisted home`;
      const command = tail.map((word) => word.replace("DIR", `${lima}/k3s`));
      const env = everyonesEnv(home);
      await using driver = await startBystander(home, { command, uid: zoe!.uid, gid: zoe!.gid });
      const { status, json } = await runGuard(home, ["--stop", "--all", "--json"], { env });
      const report = (json().instances as Report[]).find((t) => t.name === "k3s");
      assert.deepEqual([status, report?.status], [1, 1], command.join(" "));
      assert.match(
        report!.blockers[0]!.hint!,
        new RegExp(`^ps -ww -p ${driver.pid}; .*: sudo -H -u lgtest kill ${driver.pid}$`),
      );
      driver.assertAlive();
    }
  },
);

// How a LaunchDaemon says where its instance is: options of lima-guard's, and variables.
const DAEMONS: [what: string, options: (home: Home) => string[], variables: (home: Home) => Record<string, string>][] =
  [
    ["LIMA_HOME", () => [], ({ lima }) => ({ LIMA_HOME: lima })],
    ["--lima-home, not LIMA_HOME", ({ lima }) => ["--lima-home", lima], () => ({ LIMA_HOME: "/x" })],
    ["--lima-home= in one word, not LIMA_HOME", ({ lima }) => [`--lima-home=${lima}`], () => ({ LIMA_HOME: "/x" })],
    [
      "--lima-home by ~/, and HOME",
      ({ lima, root }) => ["--lima-home", lima.replace(root, "~")],
      ({ root }) => ({ HOME: root }),
    ],
  ];
for (const [what, options, variables] of DAEMONS) {
  asRoot(`a home of a LaunchDaemon is served where no host agent lives yet: ${what}`, async () => {
    await using one = await tempLimaHome();
    await using root = await tempLimaHome();
    one.instance("k3s");
    one.giveTo(zoe!);
    Deno.chmodSync(one.root, 0o755);
    const folder = "/Library/LaunchDaemons";
    const plist = `${folder}/io.lima-guard.test.plist`;
    Deno.mkdirSync(folder, { recursive: true });
    const args = ["/x/lima-guard", "--run", "k3s", ...options(one), "--", "limactl"];
    const entries = Object.entries(variables(one)).map(([key, value]) => `<key>${key}</key><string>${value}</string>`);
    Deno.writeTextFileSync(
      plist,
      `<plist><dict><key>UserName</key><string>${zoe!.name}</string><key>EnvironmentVariables</key><dict>
${entries.join("")}</dict><key>ProgramArguments</key><array>
${args.map((word) => `<string>${word}</string>`).join("")}</array></dict></plist>`,
    );
    try {
      const { status, json, stderr } = await runGuard(root, ["--stop", "--all", "--json"], { env: everyonesEnv(root) });
      const [report] = json().instances as Report[];
      assert.deepEqual([status, report?.name, report?.home, report?.state], [0, "k3s", one.lima, "stopped"], stderr);
    } finally {
      Deno.removeSync(plist);
    }
  });
}

asRoot(
  "the ~/ of a daemon's --lima-home is that of its user, or of its own HOME, and never that of who asks",
  async () => {
    await using home = await tempLimaHome();
    home.instance("k3s");
    const plist = "/Library/LaunchDaemons/io.lima-guard.test.plist";
    Deno.mkdirSync(dirname(plist), { recursive: true });
    Deno.symlinkSync(home.lima, `${home.user}/lima-of-k3s`);
    const jobs = async (variables: string) => {
      Deno.writeTextFileSync(
        plist,
        `<plist><dict><key>UserName</key><string>${zoe!.name}</string><key>EnvironmentVariables</key><dict>${variables}
</dict><key>ProgramArguments</key><array>${
          ["/x/lima-guard", "--run", "k3s", "--lima-home", "~/lima-of-k3s", "--", "limactl", "start", "k3s"].map((
            word,
          ) => `<string>${word}</string>`).join("")
        }</array></dict></plist>`,
      );
      const { json, stdout } = await runGuard(home, ["--status", "k3s", "--json"]);
      assert.equal(json().instances.length, 1, stdout);
      return json().instances[0].jobs.length;
    };
    try {
      assert.equal(await jobs(""), 0);
      assert.equal(await jobs(`<key>HOME</key><string>${home.user}</string>`), 1);
    } finally {
      Deno.removeSync(plist);
    }
  },
);

asRoot("the other roles of root touch nothing of another user, and say what to type", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  home.giveTo(zoe!);
  Deno.chmodSync(home.root, 0o755);
  for (const [role, ...rest] of [["--pre"], ["--stop"], ["--run", "--", "true"]] as const) {
    const before = k3s.files();
    const ran = await runGuard(home, [role, "k3s", ...rest]);
    assert.equal(ran.status, 77, role);
    assert.match(
      ran.stdout + ran.stderr,
      new RegExp(`sudo -H -u ${zoe!.name} lima-guard ${role} --lima-home \\S+ k3s`),
    );
    assert.deepEqual(k3s.files(), before);
  }
});

/** What a start would meet that lima-guard names and does not touch: lists that cannot be read, an orphaned ssh master. */

import assert from "node:assert/strict";
import { eventually, NO_ORDINARY_USER, ordinaryUser, runGuard, sshGuest, whyNoSshd } from "./helpers/mod.ts";
import { pre, remark, test } from "./helpers/pre.ts";

test("LIMA_HOME can be entered and not listed: limactl start would fail, so it is not ready", async ({ home, k3s }) => {
  const user = ordinaryUser()!;
  home.giveTo(user);
  Deno.chmodSync(home.lima, 0o311);
  const { report, status } = await pre(k3s, { user });
  assert.deepEqual([report.state, status], ["blocked", 77], JSON.stringify(report));
  assert.match(
    remark(report.blockers[0]!),
    /^\/.*lima: limactl start lists it.*cannot be listed: .*\(ls -ld \S+lima\)$/,
  );
}, { ignore: ordinaryUser() ? false : NO_ORDINARY_USER });

test("a folder of jobs that cannot be read: whether there is a job is unknown", async ({ home, k3s }) => {
  Deno.mkdirSync(`${home.user}/Library`, { recursive: true });
  Deno.symlinkSync("LaunchAgents", `${home.user}/Library/LaunchAgents`);
  const { stdout, json } = await runGuard(home, ["--status", "k3s", "--json"]);
  const notes = json().instances[0].notes.map(remark);
  assert.ok(
    notes.some((note: string) => /LaunchAgents: whether it holds a launchd job .* is unknown/.test(note)),
    stdout,
  );
  assert.ok(!notes.some((note: string) => note.includes("no launchd job found")), stdout);
  void k3s;
});

test("a plist that cannot be read: whether it is a job of the instance is unknown", async ({ home, k3s }) => {
  const folder = `${home.user}/Library/LaunchAgents`;
  Deno.mkdirSync(`${folder}/folder.plist`, { recursive: true });
  Deno.symlinkSync("nowhere", `${folder}/gone.plist`);
  const { stdout, json } = await runGuard(home, ["--status", "k3s", "--json"]);
  const notes = json().instances[0].notes.map(remark);
  assert.deepEqual(notes.map((note: string) => /(\w+)\.plist: whether/.exec(note)?.[1]), ["folder"], stdout);
  void k3s;
});

test(
  "an ssh master that outlived its host agent is named, and the command beside it ends it",
  async ({ home, k3s }) => {
    await using guest = await sshGuest(k3s);
    const host = "lima-k3s";
    const control = ["-S", k3s.path("ssh.sock"), "-o", "ControlMaster=yes", "-o", "ControlPersist=yes"];
    const master = ["-F", k3s.path("ssh.config"), ...control, "-N", "-f", host];
    const made = await new Deno.Command("ssh", { args: master, env: home.mark, stdin: "null", stderr: "null" })
      .output();
    assert.equal(made.code, 0);
    const masters = () => home.processes().filter((line) => line.includes("ssh.sock"));
    assert.equal(masters().length, 1, masters().join("\n"));
    const { report, status } = await pre(k3s);
    assert.deepEqual([report.state, status], ["clear", 0]);
    const [note] = report.notes;
    assert.match(remark(note!), /ssh\.sock: an ssh master of a run that is over takes connections/);
    const typed = await new Deno.Command("sh", { args: ["-c", note!.hint!], cwd: "/", stderr: "null" }).output();
    assert.equal(typed.code, 0, note!.hint);
    await eventually(() => assert.deepEqual(masters(), []));
    assert.deepEqual((await pre(k3s)).report.notes, []);
    void guest;
  },
  { ignore: whyNoSshd() },
);

test("a disk lock of an instance that is gone is named where that instance is asked for", async ({ home, k3s }) => {
  const disk = home.disk("data", { inUseBy: `${home.lima}/gone` });
  const { json, status } = await runGuard(home, ["--pre", "gone", "--json"]);
  assert.equal(status, 66);
  const [note] = json().instances[0].notes;
  assert.equal(note.what, disk.lock);
  assert.match(note.because, /disk data is in use by this instance, which is gone/);
  assert.equal(note.hint, `LIMA_HOME=${home.lima} limactl disk unlock data`);
  void k3s;
});

const BARE = ["/x/limactl", "start", "k3s", "--foreground"];

/** A login agent that starts k3s, with this beside its command. */
function loginAgent(user: string, more: string, command = BARE): void {
  const folder = `${user}/Library/LaunchAgents`;
  Deno.mkdirSync(folder, { recursive: true });
  const args = command.map((word) => `<string>${word}</string>`).join("");
  const text =
    `<plist><dict><key>Label</key><string>x</string><key>ProgramArguments</key><array>${args}</array>${more}`;
  Deno.writeTextFileSync(`${folder}/x.plist`, `${text}</dict></plist>\n`);
}

for (
  const [what, isOurs, more] of [
    ["no LIMA_HOME is of ~/.lima", false, () => ""],
    [
      "the directory of this instance is its job",
      true,
      (dir: string) => `<key>WorkingDirectory</key><string>${dir}</string>`,
    ],
    ["the directory of another one is not", false, () => "<key>WorkingDirectory</key><string>/x/k3s</string>"],
    [
      "the directory of this instance in another dictionary is not",
      false,
      (dir: string) => `<key>Other</key><dict><key>WorkingDirectory</key><string>${dir}</string></dict>`,
    ],
    [
      "LIMA_HOME among the variables is its job",
      true,
      (dir: string) =>
        `<key>EnvironmentVariables</key><dict><key>LIMA_HOME</key><string>${dir.slice(0, -4)}</string></dict>`,
    ],
    [
      "LIMA_HOME in another dictionary is not",
      false,
      (dir: string) => `<key>Other</key><dict><key>LIMA_HOME</key><string>${dir.slice(0, -4)}</string></dict>`,
    ],
  ] as const
) {
  test(`a login agent of that name with ${what}`, async ({ home, k3s }) => {
    loginAgent(home.user, more(k3s.dir));
    const { json, stdout } = await runGuard(home, ["--status", "k3s", "--json"]);
    assert.equal(json().instances[0].jobs.length, isOurs ? 1 : 0, stdout);
  });
}

/** What a plist says of a home in its variables. */
const variables = (home: string) =>
  `<key>EnvironmentVariables</key><dict><key>LIMA_HOME</key><string>${home}</string></dict>`;

for (
  const [what, isOurs, options, more] of [
    [
      "of this home, and the directory of another one",
      true,
      (lima: string) => ["--lima-home", lima],
      () => "<key>WorkingDirectory</key><string>/x/k3s</string>",
    ],
    [
      "of this home, and LIMA_HOME of another one",
      true,
      (lima: string) => ["--lima-home", lima],
      () => variables("/x"),
    ],
    ["of this home in one word", true, (lima: string) => [`--lima-home=${lima}`], () => variables("/x")],
    ["of this home by ~/", true, () => ["--lima-home", "~/lima-of-k3s"], () => variables("/x")],
    [
      "of this home by ~/, and a HOME of its own",
      false,
      () => ["--lima-home", "~/lima-of-k3s"],
      () => variables("/x").replace("LIMA_HOME", "HOME"),
    ],
    ["of another home, and LIMA_HOME of this one", false, () => ["--lima-home", "/x"], variables],
    ["that is the command's own, and LIMA_HOME of this one", true, () => ["--", "/x", "--lima-home", "/x"], variables],
  ] as const
) {
  test(`a login agent with a --lima-home ${what}`, async ({ home, k3s }) => {
    Deno.symlinkSync(home.lima, `${home.user}/lima-of-k3s`);
    const words = options(home.lima);
    const command = ["/x/lima-guard", "--run", "k3s", ...words, ...words.includes("--") ? [] : ["--", ...BARE]];
    const behindShell = ["/bin/sh", "-c", `/bin/wait4path /nix/store &amp;&amp; exec ${command.join(" ")}`];
    for (const program of [command, behindShell]) {
      loginAgent(home.user, more(home.lima), program);
      const { json, stdout } = await runGuard(home, ["--status", "k3s", "--json"]);
      assert.equal(json().instances[0].jobs.length, isOurs ? 1 : 0, `${program[0]}: ${stdout}`);
    }
    void k3s;
  });
}

/** The stand-ins with perl as Apple builds it: its `$^X` is argv[0], and the newest of several is named by path. */

import assert from "node:assert/strict";
import { tempLimaHome } from "../helpers/home.ts";
import { project, standin } from "../helpers/paths.ts";
import { eventually, killChild, ps } from "../helpers/processes.ts";

const APPLE = { PERL5OPT: "-MArgvZero", PERL5LIB: `${project}/tests/standin/apple` };
const ON_LINUX = Deno.build.os === "linux";
const ignore = { ignore: !ON_LINUX };
const why = ON_LINUX ? "" : ": needs /proc";

async function perl(text: string, argv0?: string): Promise<string> {
  const script = `exec -a "\${1:-perl}" perl -I "$2" -e "$3"`;
  const { code, stdout, stderr } = await new Deno.Command("bash", {
    args: ["-c", script, "bash", argv0 ?? "", `${project}/tests/standin/lib`, text],
    env: APPLE,
    stdin: "null",
  }).output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

Deno.test({
  name: `a perl whose $^X is argv[0] is at hand for the tests${why}`,
  ...ignore,
  async fn() {
    assert.equal(await perl("print $^X", "/opt/limactl start d"), "/opt/limactl start d");
  },
});

for (
  const [files, path] of [
    ["", "/usr/bin/perl"],
    ["/usr/bin/perl5.30", "/usr/bin/perl5.30"],
    ["/usr/bin/perl5.8 /usr/bin/perl5.34 /usr/bin/perl5.30", "/usr/bin/perl5.34"],
    ["/usr/bin/perl5.34.1 /usr/bin/perl5.34-arm64", "/usr/bin/perl"],
  ] as const
) {
  Deno.test({
    name: `interpreter() on a Mac with ${files || "no perl5.N"}: ${path}${why}`,
    ...ignore,
    async fn() {
      assert.equal(await perl(`use Standin; print Standin::interpreter("darwin", qw(${files}))`), path);
    },
  });
}

const PLAYED = [
  ["limactl", (dir: string) => ["hostagent", "--pidfile", `${dir}/ha.pid`, "--socket", `${dir}/ha.sock`, "d"]],
  ["qemu-system-x86_64", (dir: string) => ["-pidfile", `${dir}/qemu.pid`]],
  ["krunkit", (dir: string) => ["--device", `virtio-blk,path=${dir}/disk`]],
  ["lima-driver-x", (dir: string) => ["--inst-dir", dir]],
] as const;
for (const [program, args] of PLAYED) {
  Deno.test({
    name: `${program} looks like what it plays, although $^X is argv[0]${why}`,
    ...ignore,
    async fn() {
      await using home = await tempLimaHome();
      const d = home.instance("d", { conf: { vmtype: "vz", grandchild: 1 } });
      const given = args(d.dir);
      const child = new Deno.Command(`${home.bin}/${program}`, {
        args: given,
        env: { ...home.env, ...APPLE },
        stdin: "null",
        stdout: "null",
        stderr: "null",
      }).spawn();
      try {
        await eventually(() => assert.equal(d.guestDisk(), "dirty", "the machine is not on"));
        assert.equal(ps(child.pid)?.command, [`${home.bin}/${program}`, ...given].join(" "));
        if (program !== "limactl") return;
        await eventually(() => assert.ok(home.processes().some((line) => / ssh: .*ssh\.sock \[mux\]$/.test(line))));
      } finally {
        killChild(child);
        await child.status;
      }
    },
  });
}

Deno.test({
  name: `limactl start becomes the host agent in the same process, although $^X is argv[0]${why}`,
  ...ignore,
  async fn() {
    await using home = await tempLimaHome();
    const d = home.instance("d", { conf: { vmtype: "vz" } });
    const env = { ...home.env, ...APPLE };
    const how = { env, stdin: "null", stdout: "null", stderr: "null" } as const;
    const child = new Deno.Command(home.limactl, { args: ["start", "d", "--foreground"], ...how }).spawn();
    try {
      await eventually(() => assert.equal(d.pid("ha.pid"), child.pid));
      assert.match(ps(child.pid)?.command ?? "", /limactl hostagent /);
    } finally {
      killChild(child);
      await child.status;
    }
  },
});

Deno.test({
  name: `a bystander looks like what it is asked to, although $^X is argv[0]${why}`,
  ...ignore,
  async fn() {
    await using home = await tempLimaHome();
    const log = `${home.root}/log`;
    const child = new Deno.Command(standin("bystander"), {
      args: [log, "/usr/libexec/sirittsd", "-x"],
      env: { ...home.mark, ...APPLE },
      stdin: "null",
    }).spawn();
    try {
      await eventually(() => assert.match(Deno.readTextFileSync(log), /^ready/));
      assert.equal(ps(child.pid)?.command, "/usr/libexec/sirittsd -x");
    } finally {
      killChild(child);
      await child.status;
    }
  },
});

Deno.test("no stand-in trusts perl's own name for itself", () => {
  const look = (dir: string): string[] =>
    [...Deno.readDirSync(dir)].flatMap(({ name, isDirectory }) => {
      if (name === "apple" || name === "recorded") return [];
      const path = `${dir}/${name}`;
      return isDirectory ? look(path) : Deno.readTextFileSync(path).includes("$^X") ? [path] : [];
    });
  assert.deepEqual(look(`${project}/tests/standin`), []);
});

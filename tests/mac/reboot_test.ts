/** tests/mac/reboot, with stand-ins that only note how they were called: its order, what it reads, and that it cleans up. */

import assert from "node:assert/strict";
import { parseInstallArgs } from "../../install.ts";
import { parseCommandLine } from "../../lima_guard.ts";
import { project } from "../helpers/paths.ts";

const SHELLS = [["dash"], ["busybox", "sh"], ["bash", "--posix"]] as const;
const ignore = Deno.build.os !== "linux";
const why = ignore ? ": the stand-ins are for Linux" : "";

interface Ran {
  readonly code: number;
  readonly said: string;
}

/** A Mac with these tools, and a home of its own. */
class Stage implements Disposable {
  readonly root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  readonly home = `${this.root}/home`;
  readonly library = `${this.root}/library`;

  constructor() {
    for (const dir of [`${this.root}/bin`, this.home, this.library]) Deno.mkdirSync(dir);
    this.tool("limactl", `[ "$1" != create ] || { mkdir "$LIMA_HOME/lgreboot"; echo {} >"$LIMA_HOME/lgreboot/x"; }`);
    this.tool("sudo", `shift; case $1 in install) exit 0;; esac; exec "$@"`);
    for (const name of ["launchctl", "log", "sysctl"]) this.tool(name, `echo "words of ${name}"`);
    this.guard(`${this.root}/bin/guard`);
  }

  tool(name: string, text: string): void {
    const script = `#!/bin/sh\necho "${name} $*" >>'${this.root}/calls'\n${text}\n`;
    Deno.writeTextFileSync(`${this.root}/bin/${name}`, script, { mode: 0o755 });
  }

  guard(path: string): void {
    Deno.writeTextFileSync(path, `#!/bin/sh\necho "guard $*" >>'${this.root}/calls'\n`, { mode: 0o755 });
  }

  async run(shell: readonly string[], ...args: string[]): Promise<Ran> {
    const [program = "", ...before] = shell;
    const { code, stdout, stderr } = await new Deno.Command(program, {
      args: [...before, `${project}/tests/mac/reboot`, ...args],
      env: { HOME: this.home, REBOOT_PATH: `${this.root}/bin`, REBOOT_LIBRARY: this.library, REBOOT_PAUSE: "0" },
      stdin: "null",
    }).output();
    return { code, said: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
  }

  get calls(): string[] {
    return Deno.readTextFileSync(`${this.root}/calls`).trim().split("\n");
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.root, { recursive: true });
  }
}

for (const shell of SHELLS) {
  Deno.test({
    name: `reboot with ${shell.join(" ")}: bare, then guarded, and nothing is left${why}`,
    ignore,
    async fn() {
      using stage = new Stage();
      const made = await stage.run(shell, "make");
      assert.deepEqual([made.code, made.said.split("\n")[0]], [0, "make: status 0"], made.said);
      const plist = Deno.readTextFileSync(`${stage.home}/.lgreboot/plist`);
      assert.match(plist, /<string>start<\/string><string>lgreboot<\/string><string>--foreground<\/string>/);
      assert.equal((await stage.run(shell, "make")).code, 1, "a second instance");

      const bare = await stage.run(shell, "read");
      assert.equal(bare.code, 0, bare.said);
      assert.match(
        bare.said,
        /^boot: [^]*^the guest's end before: [^]*^without lima-guard$[^]*^macOS: [^]*words of log/m,
      );

      assert.equal((await stage.run(shell, "guard", `${stage.root}/bin/guard`)).code, 0);
      Deno.mkdirSync(`${stage.library}/lima-guard-reboot`);
      stage.guard(`${stage.library}/lima-guard-reboot/lima-guard`);
      Deno.writeTextFileSync(`${stage.home}/.lgreboot/lgreboot/lima-guard.jsonl`, '{"event":"end","stage":"guest"}\n');
      Deno.writeTextFileSync(`${stage.home}/.lgreboot/lgreboot/ha.stderr.log`, "CanRequestStop: false\n");
      const guarded = await stage.run(shell, "read");
      assert.equal(guarded.code, 0, guarded.said);
      assert.match(
        guarded.said,
        /^CanRequestStop: status 0\n {2}CanRequestStop: false$[^]*^its journal: [^]*"stage":"guest"/m,
      );
      const guards = stage.calls.filter((call) => call.startsWith("guard "));
      assert.deepEqual(guards.map((call) => call.split(" ")[1]), ["--install", "--check", "--status"]);
      for (const call of guards) {
        const asked = parseCommandLine(call.split(" ").slice(1));
        assert.ok(!("usage" in asked), `${call}: ${JSON.stringify(asked)}`);
        if ("install" in asked) assert.ok(!("usage" in parseInstallArgs(asked.install)), call);
      }

      assert.equal((await stage.run(shell, "remove")).code, 0);
      assert.deepEqual([[...Deno.readDirSync(stage.home)], [...Deno.readDirSync(stage.library)]], [[], []]);
    },
  });
}

Deno.test({
  name: `reboot leaves nothing of an instance that could not be made, and says what it is called with${why}`,
  ignore,
  async fn() {
    using stage = new Stage();
    stage.tool("limactl", "echo no vz here >&2; exit 1");
    const made = await stage.run(["dash"], "make");
    assert.deepEqual([made.code, made.said], [1, "make: status 1\n  no vz here\n"]);
    assert.deepEqual([...Deno.readDirSync(stage.home)], []);
    assert.match((await stage.run(["dash"], "x")).said, /^usage: reboot make, /);
    assert.equal((await stage.run(["dash"], "x")).code, 64);
  },
});

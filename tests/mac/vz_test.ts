/** tests/mac/vz, with stand-ins that only note how they were called: its order, its words, and that it cleans up. */

import assert from "node:assert/strict";
import { parseInstallArgs } from "../../install.ts";
import { parseCommandLine } from "../../lima_guard.ts";
import { project } from "../helpers/paths.ts";

interface Ran {
  readonly code: number;
  readonly said: string;
  readonly calls: readonly string[];
  readonly summary: string;
  readonly left: readonly string[];
}

async function vz(shell: readonly string[], what: string, { hv = "1", pre = 0, create = 0 } = {}): Promise<Ran> {
  const root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  try {
    const [bin, home] = [`${root}/bin`, `${root}/home`];
    for (const dir of [bin, home]) Deno.mkdirSync(dir);
    const tool = (name: string, text: string) =>
      Deno.writeTextFileSync(`${bin}/${name}`, `#!/bin/sh\necho "${name} $*" >>'${root}/calls'\n${text}\n`, {
        mode: 0o755,
      });
    const makes = (dir: string) => `mkdir -p "${dir}"; echo 4194303 >"${dir}/ha.pid"`;
    tool("sysctl", `echo ${hv}`);
    tool("sw_vers", "echo 15.7");
    tool("brew", "");
    tool("limactl", `[ "$1" != create ] || { ${makes("$LIMA_HOME/lgvz")}; exit ${create}; }`);
    tool("colima", `${makes("$COLIMA_HOME/_lima/colima")}`);
    tool("sudo", `shift; case $1 in rm|install) exit 0;; esac; exec "$@"`);
    tool("lsof", "exit 1");
    tool("ps", "echo limactl hostagent");
    // After a bootout the label is gone.
    tool("launchctl", `[ "$1" != print ] || exit 113`);
    tool("guard", `[ "$1" != --pre ] || exit ${pre}`);
    const [program = "", ...before] = shell;
    const { code, stdout, stderr } = await new Deno.Command(program, {
      args: [...before, `${project}/tests/mac/vz`, `${bin}/guard`, what],
      env: { HOME: home, VZ_PATH: bin, VZ_PAUSE: "0", GITHUB_STEP_SUMMARY: `${root}/summary` },
      stdin: "null",
    }).output();
    return {
      code,
      said: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr),
      calls: Deno.readTextFileSync(`${root}/calls`).trim().split("\n"),
      summary: Deno.readTextFileSync(`${root}/summary`),
      left: [...Deno.readDirSync(home)].map(({ name }) => name),
    };
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}

const SHELLS = [["dash"], ["busybox", "sh"], ["bash", "--posix"]] as const;
const ignore = Deno.build.os !== "linux";
const why = ignore ? ": the stand-ins are for Linux" : "";
for (const shell of SHELLS) {
  for (const what of ["lima", "colima"]) {
    Deno.test({
      name: `vz with ${shell.join(" ")}, ${what}: faults in their order, and nothing is left${why}`,
      ignore,
      async fn() {
        const { code, said, calls, left, summary } = await vz(shell, what);
        assert.equal(code, 0, said);
        assert.match(said, /all of it held\n$/);
        const guards = calls.filter((call) => call.startsWith("guard ")).map((call) => call.split(" ")[1]);
        assert.deepEqual(guards, ["--install", "--check", "--status", "--pre", "--stop", "--uninstall"]);
        for (const call of calls.filter((one) => one.startsWith("guard "))) {
          const asked = parseCommandLine(call.split(" ").slice(1));
          assert.ok(!("usage" in asked), `${call}: ${JSON.stringify(asked)}`);
          if ("install" in asked) assert.ok(!("usage" in parseInstallArgs(asked.install)), call);
        }
        const verbs = calls.filter((call) => /^launchctl boot/.test(call)).map((call) => call.split(" ")[1]);
        assert.deepEqual(verbs, [
          ...["bootstrap", "bootout", "bootstrap", "bootout", "bootstrap", "bootout", "bootstrap"],
          "bootout",
        ]);
        assert.equal(summary, said.split("\n").filter((line) => line !== "").map((line) => `- ${line}\n`).join(""));
        assert.deepEqual(left, []);
      },
    });
  }
}

Deno.test({
  name: `vz says first that a Mac can run no VM, and tries nothing${why}`,
  ignore,
  async fn() {
    const { code, said, calls } = await vz(["dash"], "lima", { hv: "0" });
    assert.equal(code, 0);
    assert.match(said, /kern\.hv_support = 0.*\nthis Mac runs no VM: nothing was tried\n$/);
    assert.deepEqual(calls.filter((call) => !/^(sysctl|sw_vers) /.test(call)), []);
  },
});

Deno.test({
  name: `vz does not upgrade what is there, and tries nothing where no instance can be made${why}`,
  ignore,
  async fn() {
    const { code, calls, left } = await vz(["dash"], "lima", { create: 1 });
    assert.equal(code, 1);
    assert.deepEqual(calls.filter((call) => /^(brew|guard|launchctl bootstrap) /.test(call)), []);
    assert.deepEqual(left, []);
  },
});

Deno.test({
  name: `vz fails where a "must" did not hold, and still ends with all of its steps${why}`,
  ignore,
  async fn() {
    const { code, said, calls } = await vz(["dash"], "lima", { pre: 75 });
    assert.equal(code, 1, said);
    assert.match(said, /^--pre: status 75 /m);
    assert.ok(calls.some((call) => call.startsWith("guard --uninstall")));
  },
});

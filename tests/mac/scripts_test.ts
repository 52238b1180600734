/** The small scripts of this folder, and what holds for all of them: plain sh, no words of bash 4. */

import assert from "node:assert/strict";
import { project } from "../helpers/paths.ts";

const MAC = `${project}/tests/mac`;
const SCRIPTS = [...Deno.readDirSync(MAC)].map(({ name }) => name)
  .filter((name) => Deno.readTextFileSync(`${MAC}/${name}`).startsWith("#!/bin/sh\n")).sort();
const SHELLS = [["dash"], ["busybox", "sh"], ["bash", "--posix"]] as const;

async function run(
  argv: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number; said: string }> {
  const [program = "", ...args] = argv;
  const { code, stdout, stderr } = await new Deno.Command(program, { args, env, stdin: "null" }).output();
  return { code, said: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

const has = async (program: string) => (await run(["sh", "-c", `command -v ${program}`])).code === 0;
const missing = new Map<string, string>();
for (const program of ["dash", "busybox", "bash", "shellcheck"]) {
  if (!await has(program)) missing.set(program, `: ${program} is not installed`);
}

Deno.test("the scripts for a Mac are these", () => {
  assert.deepEqual(SCRIPTS, ["handshake", "learnt", "probe.sh", "reboot", "record", "share", "vz"]);
});

for (const name of SCRIPTS) {
  for (const shell of SHELLS) {
    Deno.test({
      name: `${name} is whole for ${shell.join(" ")}${missing.get(shell[0]) ?? ""}`,
      ignore: missing.has(shell[0]),
      async fn() {
        assert.deepEqual(await run([...shell, "-n", `${MAC}/${name}`]), { code: 0, said: "" });
      },
    });
  }
  Deno.test({
    name: `${name} is clean for shellcheck${missing.get("shellcheck") ?? ""}`,
    ignore: missing.has("shellcheck"),
    async fn() {
      for (const dialect of ["sh", "bash"]) {
        assert.deepEqual(await run(["shellcheck", "-s", dialect, `${MAC}/${name}`]), { code: 0, said: "" });
      }
    },
  });
  Deno.test(`${name} uses nothing that only GNU or bash has`, () => {
    const text = Deno.readTextFileSync(`${MAC}/${name}`).replaceAll(/^ *#.*$/gm, "");
    for (
      const word of [
        /\bsed (-\S+ )*-i/,
        /\bstat -c/,
        /\bdate \+%s?N/,
        /\breadlink -f/,
        /\$\(mktemp(?! -d \S+\.XXXXXX)/,
        /\bgrep -\w*P/,
        /\bsort -V/,
        /\btimeout \d/,
        /\bdate (-\S+ )*(-d|--date|-I)\b/,
        /\brealpath\b|\bxargs -\w*r|\b(head|tail) (-n )?-c? ?-\d|\bcp --|\bseq\b|\bnproc\b/,
        /\|&|\bcoproc\b|\$\{\w+@\w\}|\$\{!\w+/,
        /(^|\s)\[\[\s|^\s*(local|declare|mapfile|readarray)\s|\$\{\w+(,,|\^\^)\}|<\(|&>>?\s*["$/]/m,
      ]
    ) assert.doesNotMatch(text, word);
  });
}

/** The shell scripts of the other folders. What runs on Linux only may have words of GNU and of bash 4. */
const OTHERS = [".ci", "packaging", "tools", "tests/standin", "tests/standin/guest", "tests/standin/recorded"].flatMap((
  folder,
) =>
  [...Deno.readDirSync(`${project}/${folder}`)].filter(({ isFile }) => isFile).map(({ name }) => `${folder}/${name}`)
).filter((path) => /^#!.*\b(ba|da)?sh\b/.test(Deno.readTextFileSync(`${project}/${path}`))).sort();

Deno.test({
  name: `the other shell scripts are clean for shellcheck${missing.get("shellcheck") ?? ""}`,
  ignore: missing.has("shellcheck"),
  async fn() {
    assert.deepEqual(OTHERS, [
      ".ci/run",
      "packaging/pkg.sh",
      "tests/standin/guest/command",
      "tests/standin/recorded/replay",
    ]);
    for (const path of OTHERS) {
      assert.deepEqual(await run(["shellcheck", `${project}/${path}`]), { code: 0, said: "" }, path);
    }
  },
});

for (const shell of SHELLS) {
  const ignore = missing.has(shell[0]);
  const why = missing.get(shell[0]) ?? "";
  Deno.test({
    name: `learnt with ${shell.join(" ")}: last lines, failed tests, and what was not reached${why}`,
    ignore,
    async fn() {
      const dir = await Deno.makeTempDir({ prefix: "lg-" });
      try {
        await Deno.writeTextFile(
          `${dir}/live.log`,
          "a ... \x1b[31mFAILED\x1b[0m (1s)\nFAILED | 3 passed | 1 failed\nend\n",
        );
        const { code, said } = await run([...shell, `${MAC}/learnt`, "macos-15", `${dir}/live.log`, `${dir}/ask.log`]);
        assert.equal(code, 0);
        assert.equal(
          said,
          "## macos-15\n\n### live\n\n```\na ... FAILED (1s)\nFAILED | 3 passed | 1 failed\n…\n" +
            "a ... FAILED (1s)\nFAILED | 3 passed | 1 failed\nend\n```\n\n### ask: not reached\n",
        );
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
  Deno.test({
    name: `handshake with ${shell.join(" ")}: what signatures are for${why}`,
    ignore,
    async fn() {
      const dir = await Deno.makeTempDir({ prefix: "lg-" });
      try {
        // A changed file is one with an x in the middle; as on a Mac it is refused and killed.
        const guard = `#!/bin/sh\ngrep -q -- '-[x]-' "$0" && kill -9 $$\necho lima-guard 0.1.0\n#${"-".repeat(400)}\n`;
        await Deno.writeTextFile(`${dir}/guard`, guard, { mode: 0o755 });
        const codesign = 'case $1 in -d*) echo "Identifier=g"; exit;; esac\n' +
          'for file do :; done; grep -q -- "-x-" "$file" && { echo "$file: invalid signature"; exit 1; }; exit 0';
        await Deno.writeTextFile(`${dir}/codesign`, `#!/bin/sh\n${codesign}\n`, { mode: 0o755 });
        await Deno.writeTextFile(`${dir}/sudo`, '#!/bin/sh\nshift\nexec "$@"\n', { mode: 0o755 });
        const env = { HANDSHAKE_TOOLS: dir };
        const { code, said } = await run([...shell, `${MAC}/handshake`, `${dir}/guard`], env);
        assert.equal(code, 0, said);
        const rows = said.split("\n").slice(9, -1).map((row) => row.replace(/\/\S+: /, ""));
        assert.deepEqual(rows, [
          "as compiled, verify: status 0, ",
          "as compiled, show: status 0, Identifier=g ",
          "one byte changed, verify: status 1, invalid signature",
          "one byte changed, run: status 137, ",
          "signed again, sign: status 0, ",
          "signed again, run: status 0, lima-guard 0.1.0",
          "signed by root, sign: status 0, ",
          "signed by root, verify: status 0, ",
          "signed by root, run: status 0, lima-guard 0.1.0",
        ]);
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
  Deno.test({
    name: `handshake with ${shell.join(" ")}: cold and warm, and a file that cannot run is seen${why}`,
    ignore,
    async fn() {
      const dir = await Deno.makeTempDir({ prefix: "lg-" });
      try {
        await Deno.writeTextFile(`${dir}/guard`, "#!/bin/sh\necho lima-guard 0.1.0\n", { mode: 0o755 });
        const good = await run([...shell, `${MAC}/handshake`, `${dir}/guard`]);
        assert.equal(good.code, 0, good.said);
        const line = String.raw`%s: \d+\.\d+ s, status 0, lima-guard 0\.1\.0\n`;
        const lines = [1, 2, 3].flatMap((n) =>
          ["cold", "warm", "warm"].map((how) => line.replace("%s", `${how} ${n}`))
        );
        assert.match(good.said, new RegExp(`^${lines.join("")}$`));
        await Deno.writeTextFile(`${dir}/guard`, "#!/bin/sh\nkill -9 $$\n");
        assert.equal((await run([...shell, `${MAC}/handshake`, `${dir}/guard`])).code, 1);
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}

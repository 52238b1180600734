/** What a release brings beside the binaries: the formula, the schema, the pictures, the package's description. */

import assert from "node:assert/strict";
import { VERSION } from "../lima_guard.ts";
import { formula, readSums } from "../tools/formula.ts";
import { pictureFiles } from "../tools/pictures.ts";
import { INSTALL_SCHEMA, LAST_STOP_KINDS, SCHEMA, schemaFiles } from "../tools/schema.ts";
import { runGuard, tempLimaHome } from "./helpers/mod.ts";
import { project } from "./helpers/paths.ts";
import { macTest, macWith } from "./install_mac.ts";

const FILES = [
  "lima-guard-aarch64-apple-darwin",
  "lima-guard-x86_64-apple-darwin",
  "lima-guard-aarch64-unknown-linux-gnu",
  "lima-guard-x86_64-unknown-linux-gnu",
  "lima-guard-manual.tar.gz",
];
const SUMS = new Map(FILES.map((file, i) => [file, `${i}`.repeat(64)]));

/** What Ruby says of a program: nothing where it is right; undefined where there is no Ruby. */
function ruby(text: string, args = ["-wc"]): string | undefined {
  const file = Deno.makeTempFileSync({ suffix: ".rb" });
  try {
    Deno.writeTextFileSync(file, text);
    const { success, stdout, stderr } = new Deno.Command("ruby", { args: [...args, file], stdin: "null" }).outputSync();
    const decoder = new TextDecoder();
    return success ? args.length > 0 ? "" : decoder.decode(stdout) : decoder.decode(stderr);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  } finally {
    Deno.removeSync(file);
  }
}
const noRuby = ruby("") === undefined;

Deno.test("formula: each file has its own sum, behind its own address", () => {
  const text = formula("zoe/lima-guard", "1.2.3", SUMS);
  const found = [...text.matchAll(/url "(.+)"\n +sha256 "(.+)"/g)].map(([, url, sum]) => [url, sum]);
  const base = "https://github.com/zoe/lima-guard/releases/download/v1.2.3/";
  assert.deepEqual(new Map(found as [string, string][]), new Map([...SUMS].map(([file, sum]) => [base + file, sum])));
  assert.ok(text.split("\n").every((line) => !/\s$/.test(line)), "blanks at the end of a line");
});

Deno.test("formula: a release without one of its files makes none", () => {
  for (const file of FILES) {
    const sums = new Map(SUMS);
    sums.delete(file);
    assert.throws(() => formula("zoe/lima-guard", "1.2.3", sums), new RegExp(`no line for ${file}`));
  }
});

Deno.test("formula: the sums are read as shasum and sha256sum write them", () => {
  const text = `${"a".repeat(64)}  one\n${"b".repeat(64)} *two\nabc  three\n`;
  assert.deepEqual([...readSums(text)], [["one", "a".repeat(64)], ["two", "b".repeat(64)]]);
});

Deno.test({
  name: `formula: ruby reads it${noRuby ? ": skipped: no ruby here" : ""}`,
  ignore: noRuby,
  fn() {
    assert.equal(ruby(formula("zoe/lima-guard", "1.2.3", SUMS)), "");
    assert.notEqual(ruby("class A"), "");
  },
});

/** As much of Homebrew's language as the formula speaks: prints each address that a machine of this kind would load. */
const BREW = (os: string, cpu: string) => `
class Formula
  class << self
    %i[desc homepage version sha256 license test].each { |name| define_method(name) { |*| nil } }
    def depends_on(what) = puts("needs " + what.inspect)
    %w[macos linux arm intel].each do |name|
      define_method("on_#{name}") { |&block| block.call if %w[${os} ${cpu}].include?(name) }
    end
    def url(address) = puts(address)
    def resource(_name) = yield
  end
end
`;

Deno.test({
  name: `formula: each machine loads its own binary, and the manual${noRuby ? ": skipped: no ruby here" : ""}`,
  ignore: noRuby,
  fn() {
    const text = formula("zoe/lima-guard", "1.2.3", SUMS);
    const machines = [["macos", "arm"], ["macos", "intel"], ["linux", "arm"], ["linux", "intel"]] as const;
    for (const [i, [os, cpu]] of machines.entries()) {
      const lines = ruby(`${BREW(os, cpu)}${text}`, [])?.trim().split("\n").map((url) => url.replace(/.*\//, ""));
      const loaded = lines?.filter((line) => !line.startsWith("needs "));
      assert.deepEqual(loaded, [FILES[i], "lima-guard-manual.tar.gz"], `${os} ${cpu}`);
      // A version of macOS that is asked for outside of on_macos makes brew refuse the formula on Linux.
      const needs = lines?.filter((line) => line.startsWith("needs "));
      assert.equal(needs?.length, os === "macos" ? 1 : 0, `${os} ${cpu}: ${needs}`);
    }
  },
});

// `brew style` of the release workflow asks all of this; here is what can be checked without it.
Deno.test("formula: Homebrew's rules for the description and for the order of what is in it", () => {
  const text = formula("zoe/lima-guard", "1.2.3", SUMS);
  const desc = /desc "(.+)"/.exec(text)?.[1] ?? "";
  assert.ok(desc.length > 0 && desc.length <= 80 - "lima-guard: ".length, desc);
  assert.doesNotMatch(desc, /^(the|an?) |^lima-?guard|\.$|command ?line/i);
  const order = [
    "desc",
    "homepage",
    "version",
    "license",
    "on_macos",
    "on_linux",
    "resource",
    "def install",
  ];
  const found = [...text.matchAll(/^ {2}(def \w+|\w+)(?= |$)/gm)].map(([, word]) => word).filter((word) =>
    word !== "end"
  );
  assert.deepEqual(found, [...order, "def caveats", "test"]);
});

Deno.test("formula: the release lets brew look at it in a folder of the name that its rules know", () => {
  const steps = Deno.readTextFileSync(`${project}/.github/workflows/release.yml`);
  assert.match(steps, /formula=\$RUNNER_TEMP\/Formula\/lima-guard\.rb\n[^]*brew style "\$formula"/);
});

for (const [file, text] of Object.entries({ ...schemaFiles(), ...pictureFiles() })) {
  Deno.test(`${file} is what \`deno task manual\` makes`, async () => {
    assert.equal(await Deno.readTextFile(`${project}/${file}`), text, `${file}: deno task manual`);
  });
}

/** Where a value does not fit its schema. As much of JSON Schema as schema/v1.json uses. */
function misfits(value: unknown, schema: Record<string, unknown>, at = "$"): string[] {
  const type = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  if (schema.type !== undefined && ![schema.type].flat().includes(type)) return [`${at}: ${type}`];
  if ("const" in schema && value !== schema.const) return [`${at}: not ${schema.const}`];
  if ("enum" in schema && !(schema.enum as unknown[]).includes(value)) return [`${at}: ${value}`];
  if (Array.isArray(value)) {
    return value.flatMap((item, i) => misfits(item, (schema.items ?? {}) as Record<string, unknown>, `${at}[${i}]`));
  }
  if (typeof value !== "object" || value === null) return [];
  const missing = ((schema.required ?? []) as string[]).filter((name) => !(name in value));
  const properties = (schema.properties ?? {}) as Record<string, Record<string, unknown>>;
  return [
    ...missing.map((name) => `${at}.${name}: missing`),
    ...Object.entries(value).flatMap(([name, inner]) => misfits(inner, properties[name] ?? {}, `${at}.${name}`)),
  ];
}

Deno.test("schema: what --pre, --stop and --status print fits it, and damage does not", async () => {
  await using home = await tempLimaHome();
  home.instance("default").pidFile("vz.pid", 999_999_999);
  for (const args of [["--status"], ["--pre", "--dry-run", "default"], ["--pre", "default"], ["--stop", "default"]]) {
    const document = (await runGuard(home, [...args, "--json"])).json();
    assert.deepEqual(misfits(document, SCHEMA), [], args.join(" "));
    assert.notDeepEqual(misfits({ ...document, version: 2 }, SCHEMA), []);
    assert.notDeepEqual(misfits({ ...document, instances: [{ ...document.instances[0], state: "odd" }] }, SCHEMA), []);
  }
  const example = JSON.parse(await Deno.readTextFile(`${project}/examples/ansible/status.json`));
  assert.deepEqual(misfits(example, SCHEMA), []);
});

macTest("schema: what --install, --check and --uninstall print fits its own, and damage does not", async () => {
  await using mac = macWith("daemon").mac;
  for (
    const args of [
      ["--check", "default"],
      ["--install", "--dry-run", "default"],
      ["--install", "default"],
      ["--check", "--all"],
      ["--check", "nope"],
      ["--check", "--nope"],
      ["--uninstall", "default"],
    ]
  ) {
    const document = JSON.parse((await mac.run([...args, "--yes", "--json"])).stdout);
    assert.deepEqual(misfits(document, INSTALL_SCHEMA), [], args.join(" "));
    assert.notDeepEqual(misfits({ ...document, role: "stop" }, INSTALL_SCHEMA), []);
    for (const instance of document.instances) {
      assert.notDeepEqual(misfits({ ...document, instances: [{ ...instance, state: "odd" }] }, INSTALL_SCHEMA), []);
    }
  }
});

Deno.test("docs/json.md and docs/install.md name each state of the schemas, and no other", () => {
  const states = (page: string) => {
    const [, list = ""] = /`state`(?: is|:)\s([^.]+)\./.exec(Deno.readTextFileSync(`${project}/${page}`)) ?? [];
    return [...list.replaceAll(/\(.*?\)/gs, "").matchAll(/`([^`]+)`/g)].map(([, state]) => state);
  };
  const ofInstance = SCHEMA.properties.instances as { items: { properties: { state: { enum: string[] } } } };
  assert.deepEqual(states("docs/json.md"), ofInstance.items.properties.state.enum);
  const ofJob = INSTALL_SCHEMA.properties.instances as typeof ofInstance;
  assert.deepEqual(states("docs/install.md").sort(), [...ofJob.items.properties.state.enum].sort());
});

/** The names of all fields of a schema, those inside of others too. */
const fieldsOf = (schema: unknown): string[] =>
  typeof schema !== "object" || schema === null ? [] : Object.entries(schema).flatMap(([name, inner]) => [
    ...name === "properties" ? Object.keys(inner) : [],
    ...fieldsOf(inner),
  ]);

Deno.test("docs/json.md names each field of --pre, --stop, --run and --status; with docs/install.md those of --install", () => {
  const [json, install] = ["json", "install"].map((page) => Deno.readTextFileSync(`${project}/docs/${page}.md`));
  const isNamed = (text: string) => (field: string) => text.includes(`\`${field}\``) || text.includes(`"${field}":`);
  const own = fieldsOf(SCHEMA);
  assert.ok(own.length > 50 && own.includes("startsAtLoad"), `only ${own.length}`);
  assert.deepEqual(own.filter((field) => !isNamed(json!)(field)), []);
  assert.deepEqual(fieldsOf(INSTALL_SCHEMA).filter((field) => !isNamed(json! + install)(field)), []);
});

Deno.test("docs/monitoring.md: a row for each kind of last stop, and no other", async () => {
  const text = await Deno.readTextFile(`${project}/docs/monitoring.md`);
  const rows = [...text.matchAll(/^\| `(.+?)` +\| .+ \| (yes|no) +\|$/gm)];
  assert.deepEqual(rows.map(([, kind]) => kind), LAST_STOP_KINDS);
});

Deno.test("deno.json: the version is that of lima-guard, and what is published is there", () => {
  const { version, exports, publish } = JSON.parse(Deno.readTextFileSync(`${project}/deno.json`));
  assert.equal(version, VERSION);
  assert.ok(publish.include.includes(exports.slice(2)));
  for (const file of publish.include) Deno.statSync(`${project}/${file}`);
});

Deno.test("deno.json: JSR takes the package: its names, its license, and no slow types", () => {
  const config = JSON.parse(Deno.readTextFileSync(`${project}/deno.json`));
  // JSR's own rules for names.
  assert.match(config.name, /^@[a-z](-?[a-z0-9]){2,19}\/[a-z](-?[a-z0-9]){1,31}$/);
  assert.match(config.version, /^\d+\.\d+\.\d+$/);
  const folder = Deno.makeTempDirSync({ prefix: "lg-jsr-" });
  try {
    for (const file of config.publish.include) Deno.copyFileSync(`${project}/${file}`, `${folder}/${file}`);
    // The stand-ins of tools/npm_only instead of JSR, so that the answer is the same without network.
    const { imports } = JSON.parse(Deno.readTextFileSync(`${project}/tools/npm_only/import_map.json`));
    for (const [name, path] of Object.entries<string>(imports)) {
      if (!path.startsWith("./")) continue;
      config.imports[name] = `./std/${path.slice(2)}`;
    }
    Deno.mkdirSync(`${folder}/std`);
    for (const { name } of Deno.readDirSync(`${project}/tools/npm_only`)) {
      if (name.endsWith(".ts")) Deno.copyFileSync(`${project}/tools/npm_only/${name}`, `${folder}/std/${name}`);
    }
    config.publish.include.push("std/*.ts");
    Deno.writeTextFileSync(`${folder}/deno.json`, JSON.stringify(config));
    const { success, stderr, stdout } = new Deno.Command(Deno.execPath(), {
      args: ["publish", "--dry-run", "--allow-dirty", "--no-check"],
      cwd: folder,
      env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
      stdin: "null",
    }).outputSync();
    const text = new TextDecoder().decode(stderr) + new TextDecoder().decode(stdout);
    assert.ok(success, text);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

/** The workflows: pinned, with one version of Deno, with genuine packages; and the notes of a release. */

import assert from "node:assert/strict";
import { MAC_TARGETS } from "../tools/compile.ts";
import { notesOf } from "../tools/notes.ts";
import { project } from "./helpers/paths.ts";

const read = (path: string) => Deno.readTextFileSync(`${project}/${path}`);
const FILES = [...Deno.readDirSync(`${project}/.github/workflows`)].map(({ name }) => name).sort();
const DENO = /npx -y deno@([\d.]+) task test/.exec(read("README.md"))?.[1];

for (const file of FILES) {
  const text = read(`.github/workflows/${file}`);
  Deno.test(`${file}: actions are pinned by commit, with their version beside it, and alike everywhere`, () => {
    const uses = [...text.matchAll(/uses: (\S+)(.*)$/gm)];
    for (const [, action = "", comment = ""] of uses) {
      assert.match(action, /^[\w-]+\/[\w-]+@[0-9a-f]{40}$/);
      assert.match(comment, /^ # v\d+\.\d+\.\d+$/);
      const name = action.split("@")[0] ?? "";
      for (const other of FILES) {
        for (const [found] of read(`.github/workflows/${other}`).matchAll(new RegExp(`${name}@.*$`, "gm"))) {
          assert.equal(found, `${action}${comment}`, other);
        }
      }
    }
  });

  Deno.test(`${file}: the README's Deno, and the packages of JSR or none`, () => {
    assert.equal(/DENO_VERSION: (.+)/.exec(text)?.[1], DENO);
    assert.match(text, /^ {2}JSR_URL: https:\/\/jsr\.io\/$/m);
  });

  Deno.test(`${file}: nothing but publishing may write, and no checkout keeps a token`, () => {
    assert.match(text, /^permissions:\n {2}contents: read$/m);
    const writing = text.split(/^ {2}(?=\w+:$)/m).filter((job) => / write$/m.test(job)).map((job) => job.split(":")[0]);
    assert.deepEqual(writing, file === "release.yml" ? ["publish"] : []);
    assert.equal(text.match(/actions\/checkout@/g)?.length, text.match(/persist-credentials: false/g)?.length);
  });

  Deno.test(`${file}: tests, tasks and targets that are named exist`, () => {
    const tasks = JSON.parse(read("deno.json")).tasks;
    for (const [, task = ""] of text.matchAll(/deno task (\w+)/g)) assert.ok(task in tasks, task);
    for (const [path] of text.matchAll(/\b(?:tests|tools)\/[\w/.]+(?<![.])/g)) Deno.statSync(`${project}/${path}`);
    for (const [target] of text.matchAll(/\w+-apple-darwin(?!\b\S)/g)) {
      assert.ok(MAC_TARGETS.includes(target), target);
    }
  });
}

Deno.test("launchd.yml: what can fail comes after what is learnt without it, and each job tells what it has learnt", () => {
  const text = read(".github/workflows/launchd.yml");
  const order = [
    "tests/mac/record learnt",
    "tests/mac/recorded_test.ts",
    "deno task compile ${{",
    "tests/mac/handshake",
    "real launchd, agent",
    "real launchd, daemon",
    "tests/mac/questions_test.ts",
    "tests/mac/vz",
    "deno task ok",
  ];
  assert.match(text, /^defaults:\n {2}run:\n {4}shell: bash$/m, "without pipefail tee hides a failure");
  const places = order.map((words) => text.indexOf(words));
  assert.ok(places.every((at) => at >= 0), places.join());
  assert.deepEqual(places, places.toSorted((a, b) => a - b));
  const jobs = text.slice(text.indexOf("\njobs:")).split(/^ {2}(?=\w+:$)/m).slice(1);
  assert.deepEqual(jobs.map((job) => job.split(":")[0]), ["learn", "vz", "suite"]);
  for (const job of jobs) {
    assert.match(
      job,
      /name: What was learnt\n {8}if: always\(\)\n {8}run: [^]*tests\/mac\/learnt [^]*GITHUB_STEP_SUMMARY/,
    );
  }
  const earlier = jobs[0]?.split("- name: Record\n")[0]?.split(/^ {6}- name: /m).slice(1) ?? [];
  assert.equal(earlier.length, 2);
  for (const step of earlier) assert.match(step, /^ {8}continue-on-error: true$/m, "the recording may not wait for it");
  for (const job of jobs.slice(1)) assert.match(job, /^ {4}if: \$\{\{ !cancelled\(\)/m);
});

Deno.test("ci.yml: the stand-ins are tried with perl as Apple builds it", () => {
  assert.match(
    read(".github/workflows/ci.yml"),
    /PERL5OPT=-MArgvZero PERL5LIB="\$PWD\/tests\/standin\/apple" deno task test/,
  );
});

Deno.test("the notes of a release are its section of the changelog", () => {
  const guard = 'export const VERSION = "1.2.3";\n';
  const changelog =
    "# Changelog\n\n## Unreleased\n\n- new\n\n## 1.2.3 - 2026-12-01\n\n### Added\n\n- a\n\n## 1.2.2 - x\n\n- b\n";
  assert.deepEqual(notesOf("v1.2.3", changelog, guard), { notes: "### Added\n\n- a" });
  assert.match(JSON.stringify(notesOf("v1.2.2", changelog, guard)), /the tag is v1\.2\.2/);
  assert.match(JSON.stringify(notesOf("v1.2.3", "## Unreleased\n\n- a\n", guard)), /has no section/);
  assert.match(JSON.stringify(notesOf("v1.2.3", "## 1.2.3 - x\n\n## 1.2.2 - y\n- b\n", guard)), /nothing in it/);
});

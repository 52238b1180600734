/**
 * `deno run --allow-read tools/notes.ts vX.Y.Z`: the notes of that release, from the changelog. Fails where the tag is not
 * the version of lima_guard.ts, or the changelog has nothing to say about it.
 * @module
 */

/** What the changelog says about a tag's version; or why that is no release. */
export function notesOf(tag: string, changelog: string, guard: string): { notes: string } | { why: string } {
  const version = /^export const VERSION = "(.+)";$/m.exec(guard)?.[1];
  if (tag !== `v${version}`) return { why: `the tag is ${tag}, and the version in lima_guard.ts is ${version}` };
  const sections = changelog.split(/^(?=## )/m);
  const section = sections.find((text) => text.startsWith(`## ${version} - `) || text.startsWith(`## [${version}] - `));
  const notes = section?.replace(/^.*\n/, "").trim();
  return notes ? { notes } : { why: `CHANGELOG.md has no section "## ${version} - DATE", or nothing in it` };
}

if (import.meta.main) {
  const read = (file: string) => Deno.readTextFile(new URL(`../${file}`, import.meta.url));
  const result = notesOf(Deno.args[0] ?? "", await read("CHANGELOG.md"), await read("lima_guard.ts"));
  const [to, text] = "notes" in result ? [Deno.stdout, result.notes] : [Deno.stderr, `Cannot release: ${result.why}`];
  await to.write(new TextEncoder().encode(`${text}\n`));
  Deno.exit("notes" in result ? 0 : 1);
}

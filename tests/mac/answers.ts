/** Answers of a Mac, written down as they come: to stdout, to the summary of the run, and as one JSON line each. */

export interface AnswerRow {
  readonly question: string;
  readonly kind: "answered" | "not asked" | "not telling" | "failed" | "late" | "for a person";
  readonly answer: string;
  readonly seconds: number;
}

/** What a question may return besides a text: an answer that this machine cannot give, and why. */
export class NoAnswer {
  constructor(readonly kind: "not asked" | "not telling" | "for a person", readonly why: string) {}
}

export const QUESTION_LIMIT_MS = 60_000;

/**
 * The answer to one question, in its time. What is thrown is an answer too: it could not be asked, and why. A question
 * that is late is not waited for any longer; its jobs are removed by the label when the next run begins.
 */
export async function answerTo(
  question: string,
  ask: () => Promise<string | NoAnswer>,
  limitMs = QUESTION_LIMIT_MS,
): Promise<AnswerRow & { readonly error?: unknown }> {
  const began = performance.now();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<undefined>((resolve) => timer = setTimeout(() => resolve(undefined), limitMs));
  const row = (kind: AnswerRow["kind"], answer: string) => ({
    question,
    kind,
    answer,
    seconds: Math.round((performance.now() - began) / 100) / 10,
  });
  try {
    const asked = ask();
    asked.catch(() => {}); // one that fails after its time has no reader any more
    const answer = await Promise.race([asked, late]);
    if (answer === undefined) return row("late", `no answer in ${limitMs / 1000} s`);
    return typeof answer === "string" ? row("answered", answer) : row(answer.kind, answer.why);
  } catch (error) {
    return { ...row("failed", error instanceof Error ? error.message : String(error)), error };
  } finally {
    clearTimeout(timer);
  }
}

export interface Paper {
  /** Markdown of the run: $GITHUB_STEP_SUMMARY. */
  readonly summary: string | undefined;
  /** One JSON line for each answer. */
  readonly jsonl: string | undefined;
  readonly print: (text: string) => void;
}

const append = (path: string | undefined, text: string) => {
  if (path !== undefined) Deno.writeTextFileSync(path, text, { append: true });
};

/** The head of the table: which Mac it is. */
export function beginPaper(paper: Paper, machine: Readonly<Record<string, string>>): void {
  const facts = Object.entries(machine).map(([name, value]) => `${name}: ${value}`);
  append(
    paper.summary,
    `## What this Mac answers\n\n${facts.join(" · ")}\n\n| question | answer | s |\n| --- | --- | --- |\n`,
  );
  append(paper.jsonl, `${JSON.stringify({ machine })}\n`);
  paper.print(`\n${facts.join("\n")}\n`);
}

export function writeAnswer(paper: Paper, { question, kind, answer, seconds }: AnswerRow): void {
  const line = (text: string) => text.replaceAll(/\s+/g, " ").replaceAll("|", "\\|").trim().slice(0, 2_000);
  const mark = kind === "answered" ? "" : `**${kind}**: `;
  append(paper.summary, `| ${line(question)} | ${mark}${line(answer)} | ${seconds} |\n`);
  append(paper.jsonl, `${JSON.stringify({ question, kind, answer, seconds })}\n`);
  paper.print(`\n${question}\n  ${mark}${answer}\n`);
}

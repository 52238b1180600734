// Stand-in for @std/log/base-handler.
import { type LevelName, type LogLevel, LogLevels } from "./levels.ts";
import type { LogRecord } from "./logger.ts";

export type FormatterFunction = (logRecord: LogRecord) => string;
export type { LevelName, LogLevel, LogRecord };

export abstract class BaseHandler {
  formatter: FormatterFunction;
  constructor(public levelName: LevelName, options: { formatter?: FormatterFunction } = {}) {
    this.formatter = options.formatter ?? ((record) => `${record.levelName} ${record.msg}`);
  }
  abstract log(msg: string): void;
  format(record: LogRecord): string {
    return this.formatter(record);
  }
  handle(record: LogRecord): void {
    if (record.level >= LogLevels[this.levelName]) this.log(this.format(record));
  }
}

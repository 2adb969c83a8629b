// What a process remembers is not the database's: each test finds the first tenant as number 1, and a cache by that number would be another test's.
import { beforeEach } from 'vitest';
import { forget } from '../src/services';

beforeEach(forget);

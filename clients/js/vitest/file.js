import { setUp } from '../edges/vitest.js';

await setUp('file');

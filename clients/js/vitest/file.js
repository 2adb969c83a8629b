import { setUp } from '../edges/vitest.js';

setUp('file');

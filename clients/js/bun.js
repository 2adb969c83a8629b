import { setUp } from './edges/bun.js';

setUp('test');

import { setUp } from './edges/node.js';

setUp('test');

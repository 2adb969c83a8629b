import { setUp } from '../edges/node.js';

setUp('file');

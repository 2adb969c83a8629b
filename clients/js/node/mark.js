import { setUp } from '../edges/node.js';

setUp('mark');

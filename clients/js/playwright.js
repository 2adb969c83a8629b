export * from './edges/playwright.js';
